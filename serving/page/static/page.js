// The page: choose a video, ask, compare. It uses nothing but the service's public API.

import { Api, Refused, messages } from "./api.js";
import { drawFrames } from "./drawing.js";

const api = new Api();
const $ = (id) => document.getElementById(id);
const state = { video: null, models: [], asked: false, busy: false, drawing: 0 };

// The slider is logarithmic: 1 % to 100 %.
const retention = () => Math.round(100 * 10 ** ((2 * $("retention").value) / 100)) / 10_000;

function showShare() {
  $("share").value = `${(100 * retention()).toFixed(retention() < 0.1 ? 1 : 0)} %`;
}

function showProblem(error) {
  $("problem").hidden = !error;
  $("problem").textContent = error ? error.message : "";
  if (error instanceof Refused && error.status === 401) {
    $("keyfield").hidden = false;
    $("key").focus();
  }
}

function refresh() {
  $("ask").disabled = state.busy || !(state.video && $("question").value.trim() && state.models.length);
  $("results").setAttribute("aria-busy", String(state.busy));
}

function pressed(group, button) {
  for (const each of group.children) each.setAttribute("aria-pressed", String(each === button));
}

function button(text, act) {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = text;
  element.setAttribute("aria-pressed", "false");
  element.addEventListener("click", () => act(element));
  return element;
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("the file cannot be read"));
    // The service asks for a video type; what it is, it finds out by itself.
    reader.readAsDataURL(new Blob([blob], { type: blob.type.startsWith("video/") ? blob.type : "video/mp4" }));
  });
}

async function useVideo(blob, name) {
  state.video = await dataUrl(blob);
  state.asked = false;
  $("chosen").textContent = name;
  const preview = $("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(blob);
  preview.hidden = false;
  refresh();
}

async function useFile(file) {
  pressed($("samples"), null);
  $("suggestions").replaceChildren();
  await useVideo(file, file.name);
}

async function useSample(sample, chosen) {
  const response = await fetch(sample.url);
  await useVideo(await response.blob(), sample.title);
  pressed($("samples"), chosen);
  const questions = sample.questions.map((question) =>
    button(question.split("\n")[0], (element) => {
      pressed($("suggestions"), element);
      $("question").value = question;
      refresh();
    }),
  );
  $("suggestions").replaceChildren(...questions);
  questions[0]?.click();
}

function option(value) {
  const element = document.createElement("option");
  element.value = element.textContent = value;
  return element;
}

function showMethods() {
  const model = state.models.find((each) => each.id === $("model").value);
  const methods = (model?.methods ?? []).filter((method) => method !== "all");
  $("method").replaceChildren(...methods.map(option));
}

async function loadModels() {
  state.models = await api.models();
  const chosen = $("model").value;
  $("model").replaceChildren(...state.models.map((model) => option(model.id)));
  if (state.models.some((model) => model.id === chosen)) $("model").value = chosen;
  showMethods();
  refresh();
}

function compressedRequest() {
  return {
    model: $("model").value,
    messages: messages(state.video, $("question").value),
    compression: { retention: retention(), method: $("method").value },
  };
}

async function drawKept(request) {
  const ticket = ++state.drawing;
  const compression = await api.compress(request);
  if (ticket !== state.drawing) return; // the slider has moved on
  const { video_tokens: all, video_tokens_kept: kept } = compression.usage;
  $("keptline").textContent = `${kept} of ${all} video tokens kept for this question`;
  await drawFrames($("frames"), compression);
  $("kept").hidden = false;
}

// "A" with the option it stands for, where the question lists options.
function showAnswer(place, text) {
  const element = place.querySelector(".answer");
  element.textContent = text || "(no answer)";
  const listed = $("question").value.match(new RegExp(`^${/^[A-Z]$/.test(text) ? text : "\\0"}[.)] (.*)$`, "m"));
  if (listed) {
    const spelt = document.createElement("small");
    spelt.textContent = ` ${listed[1]}`;
    element.append(spelt);
  }
}

const spent = (usage) => usage.timings.policy_ms + usage.timings.generate_ms;

function showTable(place, usage) {
  const rows = [
    ["video tokens", usage.video_tokens_kept],
    ["prompt tokens", usage.prompt_tokens],
    ["policy", `${usage.timings.policy_ms.toFixed(1)} ms`],
    ["first token", `${usage.timings.first_token_ms.toFixed(1)} ms`],
    ["whole answer", `${usage.timings.generate_ms.toFixed(1)} ms`],
  ];
  place.querySelector("table").replaceChildren(
    ...rows.map((cells) => {
      const row = document.createElement("tr");
      row.append(...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
      return row;
    }),
  );
}

function showSaved(compressed, whole) {
  const tokens = whole.video_tokens_kept - compressed.video_tokens_kept;
  const share = whole.video_tokens_kept ? (100 * tokens) / whole.video_tokens_kept : 0;
  const saved = spent(whole) - spent(compressed);
  const strong = (text) => Object.assign(document.createElement("strong"), { textContent: text });
  $("saved").replaceChildren(
    strong(`${tokens} video tokens (${share.toFixed(0)} %)`),
    " and ",
    strong(`${Math.abs(saved).toFixed(1)} ms`),
    saved >= 0 ? " saved" : " lost",
    ` of ${spent(whole).toFixed(1)} ms for policy and language model`,
  );
}

async function ask() {
  const request = compressedRequest();
  const wholeRequest = { ...request, compression: { method: "all" } };
  await drawKept(request); // it also warms the video's features up, so that the two answers compare
  const compressed = await api.answer(request);
  const whole = await api.answer(wholeRequest);
  for (const [place, answer] of [[$("compressed"), compressed], [$("whole"), whole]]) {
    showAnswer(place, answer.text);
    showTable(place, answer.usage);
  }
  showSaved(compressed.usage, whole.usage);
  $("hint").hidden = true;
  $("outcome").hidden = false;
  state.asked = true;
}

// Whether it went well; what is wrong is shown.
async function guarded(work) {
  showProblem(null);
  try {
    await work();
    return true;
  } catch (error) {
    showProblem(error);
    return false;
  }
}

// Answers to an earlier question would pass for answers to this one.
function forget() {
  state.asked = false;
  $("outcome").hidden = $("kept").hidden = true;
  $("hint").hidden = false;
}

async function submit(event) {
  event.preventDefault();
  state.busy = true;
  refresh();
  const answered = await guarded(ask);
  if (!answered) forget();
  state.busy = false;
  refresh();
}

let pause;
function slide() {
  showShare();
  clearTimeout(pause);
  if (state.asked) pause = setTimeout(() => guarded(() => drawKept(compressedRequest())), 120);
}

function wire() {
  $("form").addEventListener("submit", submit);
  $("question").addEventListener("input", refresh);
  $("retention").addEventListener("input", slide);
  $("model").addEventListener("change", showMethods);
  $("key").addEventListener("change", () => {
    api.key = $("key").value;
    guarded(loadModels);
  });
  $("file").addEventListener("change", () => $("file").files[0] && guarded(() => useFile($("file").files[0])));
  for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    $("drop").addEventListener(name, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", over);
      const file = name === "drop" && event.dataTransfer.files[0];
      if (file) guarded(() => useFile(file));
    });
  }
}

async function begin() {
  wire();
  showShare();
  const samples = await api.samples();
  $("samples").replaceChildren(...samples.map((sample) => button(sample.title, (element) => guarded(() => useSample(sample, element)))));
  await loadModels();
}

guarded(begin);
