"""What the plug-in makes of a harness's chats, on a tiny random model; lmms-eval itself is not needed."""

from pathlib import Path

import pytest
import torch

from cacovid.compressor import Compressor
from cacovid.config import ModelConfig, TrainConfig
from cacovid.data.video import read_frames
from cacovid.errors import BadItem, UserError
from cacovid.harness.answerer import Answerer, question_of
from cacovid.models.loading import load_video_llm
from cacovid.policy.build import policy_for
from tests.support.tiny_models import save_tiny_model
from tests.support.video_files import grey_levels, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("harness")
    save_tiny_model("llava_onevision", made / "model")
    config = ModelConfig(path=str(made / "model"), num_frames=4)
    policy_for(load_video_llm(config), TrainConfig(model=config)).save_pretrained(made / "run" / "policy")
    write_video(made / "v.mp4", grey_levels(8), size=(64, 64))
    return made


def chat(*parts: dict[str, object]) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(parts)}]


def asked(folder: Path, text: str = "what is it?") -> list[dict[str, object]]:
    return chat({"type": "video", "url": str(folder / "v.mp4")}, {"type": "text", "text": text})


def test_a_policy_answers_as_the_compressor_does(folder: Path) -> None:
    answerer = Answerer(policy=str(folder / "run"), retention=0.25)  # a whole run, and the policy's own model
    found = answerer.answer(asked(folder), "q", 5)
    clip = Compressor.from_pretrained(folder / "run" / "policy")(folder / "v.mp4", "what is it?", retention=0.25)
    assert found.text == clip.answer(max_new_tokens=5)
    assert found.prompt_tokens == clip.prompt_tokens()
    assert 0 < found.new_tokens <= 5


@pytest.mark.parametrize("method", [None, "uniform", "visionzip", "prunevid", "fastv-behind"])
def test_methods_before_and_within_the_llm_answer(folder: Path, method: str | None) -> None:
    answerer = Answerer(str(folder / "model"), method=method, retention=0.5, num_frames=4)
    found = answerer.answer(asked(folder), "q", 3)
    assert found == answerer.answer(asked(folder), "q", 3)
    whole = Answerer(str(folder / "model"), num_frames=4).answer(asked(folder), "q", 3)
    if method is None:
        assert found == whole
    else:
        assert found.prompt_tokens <= whole.prompt_tokens


def test_chats_of_several_turns_and_without_a_video_are_answered(folder: Path) -> None:
    answerer = Answerer(policy=str(folder / "run"))
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "be short"}]},
        *asked(folder),
        {"role": "assistant", "content": [{"type": "text", "text": "grey"}]},
        *chat({"type": "text", "text": "really?"}),
    ]
    assert answerer.answer(turns, "q", 2).prompt_tokens > answerer.answer(asked(folder), "q", 2).prompt_tokens
    assert answerer.answer(chat({"type": "text", "text": "hello"}), "q", 2).new_tokens <= 2


def test_the_segment_alone_is_watched(folder: Path) -> None:
    answerer = Answerer(policy=str(folder / "run"))
    seen: list[torch.Tensor] = []
    watch = answerer.video_llm.watch

    def watching(frames, **options):
        seen.append(torch.from_numpy(frames))
        return watch(frames, **options)

    answerer.video_llm.watch = watching  # type: ignore[method-assign]
    duration = read_frames(folder / "v.mp4", 4).duration_s
    for times in ({}, {"start_time": 0.5 * duration}, {"end_time": 0.5 * duration}, {"start_time": None}):
        answerer.answer(chat({"type": "video", "url": str(folder / "v.mp4"), **times}), "q", 1)
    whole, late, early, again = (frames.float().mean((1, 2, 3)) for frames in seen)
    assert late.min() >= early.max() > whole.min()  # the clip gets brighter
    assert (whole == again).all()


def test_random_methods_draw_by_the_questions_name(folder: Path) -> None:
    answerer = Answerer(str(folder / "model"), method="random", retention=0.1, num_frames=4)
    seen: list[tuple[int, ...]] = []
    pack = answerer.video_llm.pack
    answerer.video_llm.pack = lambda encoded, keep: seen.append(tuple(keep[0].tolist())) or pack(encoded, keep)  # type: ignore[method-assign]
    for name in ("a", "b", "a"):
        answerer.answer(asked(folder), name, 1)
    assert seen[0] == seen[2] != seen[1]


def test_options_are_no_part_of_the_question(folder: Path) -> None:
    plain = "What does he do?\nIn the end."
    for options in ("\nA. run\nB. jump", "\n(A) run\n(B) jump", "\nA: run\nB: jump\nAnswer with the letter."):
        assert question_of(asked(folder, plain + options)) == plain
    assert question_of(asked(folder, plain)) == plain
    assert question_of(asked(folder, "A. run\nB. jump")) == "A. run\nB. jump"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image", "url": object()}, "image"),
        ({"type": "audio", "url": "a.wav"}, "audio"),
        ({"type": "video", "url": torch.zeros(3)}, "Tensor"),
        ({"type": "video", "url": "v.mp4", "start_time": 99.0}, "no such video"),
    ],
)
def test_what_is_not_understood_is_refused(folder: Path, part: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Answerer(policy=str(folder / "run")).answer(chat(part, {"type": "text", "text": "what?"}), "q", 2)


def test_mistakes_are_named(folder: Path) -> None:
    model, policy = str(folder / "model"), str(folder / "run")
    with pytest.raises(UserError, match="outside"):
        Answerer(model, retention=0)
    with pytest.raises(UserError, match="unknown method"):
        Answerer(model, method="best")
    with pytest.raises(UserError, match="reads where the answer is"):
        Answerer(model, method="oracle")
    with pytest.raises(UserError, match="needs a trained policy"):
        Answerer(model, method="policy")
    with pytest.raises(UserError, match="does not say which model"):
        Answerer()
    with pytest.raises(UserError, match=r"policy\.json"):
        Answerer(model, policy=str(folder / "none"))
    with pytest.raises(BadItem, match=r"none\.mp4"):
        Answerer(policy=policy).answer(
            chat({"type": "video", "url": "none.mp4"}, {"type": "text", "text": "?"}), "q", 2
        )
