"""Long videos through the service: frames come, are encoded and scored in chunks, with the same outcome as at once."""

import errno
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

import serving
from cacovid.config import PolicyConfig, TrainConfig
from cacovid.data.video import read_frames
from cacovid.embedded.clips import draw_clip
from cacovid.embedded.video_writer import write_mp4
from cacovid.policy.build import policy_for
from cluster.commands.main import main
from serving.config_file import load_service_config
from serving.engine.engine import Engine
from serving.engine.prompts import Job
from serving.engine.records import Compressed, CompressionWish, Decoding, Event, Finished
from serving.errors import ApiError
from serving.media.records import Clip, Sampling
from tests.support.ports import free_port
from tests.support.serving_engine import (
    asks,
    clip_of,
    compresses,
    engine_of,
    failure,
    one,
    run,
    text_of,
    tiny_folder,
    tiny_llm,
    tiny_policy,
)
from tests.support.serving_videos import frames_url, jpeg
from tests.unit.serving.test_media import read, read_all, refused

FRAMES, CHUNK = 40, 7
DECODED = Sampling(num_frames=FRAMES)
FEW = CompressionWish(retention=0.03)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "video.mp4"
    write_mp4(path, np.concatenate([draw_clip(seed).frames for seed in range(FRAMES // 8)]))
    return path


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_of(feature_cache_bytes=0)


def long_clip(seed: int = 0, chunk: int | None = CHUNK) -> Clip:
    return replace(clip_of(seed, FRAMES), chunk=chunk)


def test_frames_of_a_file_come_in_chunks_as_they_come_at_once(video):
    clip = read(f"file://{video}", DECODED, file_root=str(video.parent), chunk_frames=CHUNK)
    whole = read_frames(video, FRAMES)
    assert [len(chunk) for chunk in clip.chunks()] == [7, 7, 7, 7, 7, 5]
    assert np.array_equal(clip.frames, whole.frames)
    assert (clip.timestamps, clip.fps, clip.chunk) == (whole.timestamps, whole.fps, CHUNK)
    assert isinstance(clip.frames.base, np.memmap), "they lie in a file, not in memory"
    short = read(f"file://{video}", Sampling(num_frames=CHUNK), file_root=str(video.parent), chunk_frames=CHUNK)
    assert short.chunk is None
    assert np.array_equal(short.frames, read_frames(video, CHUNK).frames)


def test_jpegs_come_in_chunks_as_they_come_at_once():
    url = frames_url(*(jpeg(level=10 * place) for place in range(5)))
    clip, whole = (read(url, Sampling(num_frames=8), chunk_frames=chunk) for chunk in (3, None))
    assert np.array_equal(clip.frames, whole.frames)
    assert (clip.timestamps, clip.key, clip.chunk, whole.chunk) == (whole.timestamps, whole.key, 3, None)


def test_what_is_wrong_with_a_later_chunk_is_told(tmp_path):
    sizes = frames_url(*[jpeg()] * 5, jpeg((64, 64)))
    assert refused(sizes, chunk_frames=2, sampling=Sampling(num_frames=6)) == "mixed_sizes"
    broken = frames_url(*[jpeg()] * 5, b"no picture")
    assert refused(broken, chunk_frames=2, sampling=Sampling(num_frames=6)) == "unreadable_video"


def test_a_full_disk_is_told():
    """As good as one: no file may grow to the size of the frames, 8 of 27 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        (refusal,) = read_all([frames_url(*[jpeg()] * 8)], chunk_frames=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(refusal, ApiError)
    assert (refusal.status, refusal.code) == (503, "no_space")


@pytest.mark.parametrize("maker", ["mkdtemp", "TemporaryFile"])
def test_a_quota_that_is_used_up_is_a_full_disk_and_a_broken_disk_is_none(monkeypatch, maker):
    """Where no file can be made at all, trying again helps nobody, and the video is not at fault either."""

    def outcome(number: int) -> ApiError:
        def fails(**named):
            raise OSError(number, "secret detail")

        monkeypatch.setattr(tempfile, maker, fails)
        (refusal,) = read_all([frames_url(*[jpeg()] * 8)], chunk_frames=2)
        return refusal

    assert outcome(errno.EDQUOT).code == "no_space"
    with pytest.raises(OSError, match="secret detail"):
        outcome(errno.EACCES)


@pytest.mark.parametrize(("folder", "status", "code"), [("full", 503, "no_space"), ("gone", 500, "internal_error")])
def test_rows_that_cannot_be_written_are_told_as_frames_are(engine, tmp_path, monkeypatch, folder, status, code):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "0").symlink_to("/dev/full")
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda: nullcontext(str(tmp_path / folder)))
    refusal = failure(one(engine, asks(compression=FEW), long_clip())).error
    assert (refusal.status, refusal.code) == (status, code)


@pytest.mark.parametrize("chunk", [1, CHUNK, FRAMES - 1])
def test_chunks_keep_the_same_tokens_and_lead_to_the_same_answer(engine, monkeypatch, chunk):
    llm, sizes = engine.video_llm, []
    watch = llm.watch
    monkeypatch.setattr(llm, "watch", lambda frames, fps: sizes.append(len(frames)) or watch(frames, fps=fps))
    drawn = asks(compression=FEW, decoding=Decoding(max_tokens=6, temperature=1.0))
    wants = compresses(compression=FEW, extras=frozenset({"embeddings", "prompt_embeds"}))
    wants = replace(wants, compression=FEW.model_copy(update={"positions": "contiguous"}))
    found: list[tuple[str, Compressed]] = []
    for clip in (long_clip(chunk=None), long_clip(chunk=chunk)):
        (compressed,) = one(engine, wants, clip)
        assert isinstance(compressed, Compressed)
        found.append((text_of(one(engine, drawn, clip)), compressed))
    (text, whole), (same_text, parts) = found
    assert sizes[:2] == [FRAMES, FRAMES]
    assert max(sizes[2:]) == chunk
    assert same_text == text
    assert text
    assert parts.kept == whole.kept
    assert parts.frame_budgets == whole.frame_budgets
    assert parts.report.video_tokens_kept < parts.report.grid.frames, "chosen over the whole clip, not chunk by chunk"
    assert parts.token_scores == pytest.approx(whole.token_scores, abs=1e-4)
    rows, others = (load(each.embeddings)["embeddings"] for each in (parts, whole))
    assert rows.numpy() == pytest.approx(others.numpy(), abs=1e-5)
    assert len(parts.prompt_embeds) == len(whole.prompt_embeds)


def paper(engine: Engine, folder: Path) -> None:
    config = TrainConfig(policy=PolicyConfig(kind="paper"))
    policy_for(engine.video_llm, config).save_pretrained(folder)
    engine.load_policies({"trained": str(folder)})


@pytest.mark.parametrize(
    ("changes", "clips", "said"),
    [
        ({"model": "plain"}, 1, "only method 'policy' reads a video in parts; ask for at most 7 frames"),
        ({"compression": CompressionWish(method="text-cosine")}, 1, "only method 'policy'"),
        ({"videos": 2}, 2, "a request holds no other video beside one of so many"),
        ({"extras": frozenset({"frames"})}, 1, "the frames of so many are not sent back"),
    ],
)
def test_what_cannot_be_had_of_a_video_in_chunks_is_refused(engine, monkeypatch, changes, clips, said):
    monkeypatch.setattr(engine.video_llm, "watch", lambda *given, **named: pytest.fail("refused before the work"))
    (events,) = run(engine, (compresses(**changes), [long_clip(seed) for seed in range(clips)]))
    refusal = failure(events).error
    assert (refusal.status, refusal.param) == (422, "media_io_kwargs.video.num_frames")
    assert f"40 frames of a video, which this service reads 7 at a time: {said}" in refusal.message


def test_policies_and_models_that_read_a_video_as_a_whole_are_named(tmp_path):
    engine = engine_of()
    paper(engine, tmp_path)
    refusal = failure(one(engine, asks(), long_clip())).error
    assert (refusal.status, "of kind 'paper', reads a video as a whole" in refusal.message) == (422, True)
    assert isinstance(one(engine, asks(), long_clip(chunk=None))[-1], Finished)
    other = failure(one(engine_of("qwen2_5_vl"), asks(), long_clip())).error
    assert (other.status, "models of type qwen2_5_vl read a video as a whole" in other.message) == (422, True)


def test_a_service_whose_model_cannot_read_chunks_does_not_start(tmp_path, monkeypatch, capsys):
    config = tmp_path / "service.yaml"
    config.write_text(f"model: {{path: {tiny_folder('qwen2_5_vl')}}}\nmedia: {{chunk_frames: 8}}\n")
    monkeypatch.setattr("cluster.ray_cluster.connected", lambda *given, **named: pytest.fail("told before Ray starts"))
    monkeypatch.setattr(sys, "argv", ["cacovid", "serve", "--config", str(config), "--port", str(free_port())])
    with pytest.raises(SystemExit) as ended:
        main()
    said = "error: media.chunk_frames=8, but models of type qwen2_5_vl read a video as a whole: leave it out\n"
    assert (ended.value.code, capsys.readouterr().err) == (2, said)


def test_the_shipped_configuration_takes_an_hour():
    config = load_service_config(Path(serving.__file__).parent / "long_videos.yaml")
    assert (config.media.chunk_frames, config.media.max_frames) == (64, 3600)
    assert config.media.max_decoded_bytes > 3600 * 640 * 360 * 3


def jobs_of(engine: Engine, *clips: Clip) -> tuple[list[Job], list[tuple[int, Event]]]:
    """Requests about ``clips``; their events in order, each with its request's place."""
    told: list[tuple[int, Event]] = []

    def sink(place: int) -> Callable[[Event], None]:
        return lambda event: told.append((place, event))

    asked = asks(compression=FEW)
    return [Job(asked, [clip], sink(place)) for place, clip in enumerate(clips)], told


def test_others_are_answered_between_the_chunks_of_a_long_video(engine):
    (first, short, late), told = jobs_of(engine, long_clip(chunk=1), clip_of(1), clip_of(2))
    coming = [[], [], [late]]
    engine.run([first, short], lambda: coming.pop(0) if coming else [])
    ends = [place for place, event in told if isinstance(event, Finished)]
    assert sorted(ends) == [0, 1, 2]
    assert ends[-1] == 0, "the long video came first and holds nobody up"
    alone = text_of(one(engine, first.request, long_clip(chunk=None)))
    assert text_of([event for place, event in told if place == 0]) == alone


def test_a_long_video_that_nobody_waits_for_is_left(engine, monkeypatch):
    (job,), told = jobs_of(engine, long_clip())
    watch, watched = engine.video_llm.watch, []
    monkeypatch.setattr(
        engine.video_llm, "watch", lambda frames, fps: watched.append(job.cancel()) or watch(frames, fps=fps)
    )
    engine.run([job])
    assert len(watched) == 1
    assert failure([event for _, event in told]).error.status == 503


def test_a_long_video_that_nobody_waits_for_leaves_before_its_turn(engine):
    """While the one before it is being read: its file goes with it."""
    (first, second), told = jobs_of(engine, long_clip(0), long_clip(1))
    engine.run([first, second], lambda: second.cancel() or [])
    (left,) = (event for place, event in told if place == 1)
    assert failure([left]).error.status == 503
    assert told.index((1, left)) == 0, "the other one is not answered yet"
    assert isinstance(told[-1][1], Finished)


@pytest.mark.parametrize(
    ("limits", "needed"), [({"max_prompt_tokens": 300}, 40 * 9), ({}, 40 * 9 // 2)], ids=["prompt", "positions"]
)
def test_a_long_video_that_cannot_fit_is_refused_after_its_first_chunk(monkeypatch, limits, needed):
    engine = engine_of(feature_cache_bytes=0, **limits)
    monkeypatch.setattr(engine._builder, "_max_position", 150)
    watch, watched = engine.video_llm.watch, []
    monkeypatch.setattr(
        tiny_llm("llava_onevision"), "watch", lambda frames, fps: watched.append(1) or watch(frames, fps=fps)
    )
    refusal = failure(one(engine, asks(compression=CompressionWish(retention=0.5)), long_clip())).error
    assert (refusal.status, refusal.code, len(watched)) == (422, "context_length_exceeded", 1)
    assert f"need {needed} tokens" in refusal.message


def test_what_others_took_between_the_chunks_is_no_time_of_encoding(engine):
    (job,), told = jobs_of(engine, long_clip())
    started = time.perf_counter()
    engine.run([job], lambda: time.sleep(0.1) or [])
    whole = time.perf_counter() - started
    (encode,) = (event.report.timings.encode for _, event in told if isinstance(event, Finished))
    assert job.others_s > 0.6, "after each of six chunks"
    assert 0 < encode < whole - job.others_s


def test_a_run_that_fails_leaves_no_long_video_behind(engine, monkeypatch):
    def lost(*given, **named):
        raise torch.AcceleratorError("CUDA error: an illegal memory access", 700)

    jobs, _ = jobs_of(engine, long_clip(0), long_clip(1))
    with monkeypatch.context() as patched:
        patched.setattr(engine.video_llm, "watch", lost)
        with pytest.raises(torch.AcceleratorError):
            engine.run(jobs)
    assert isinstance(one(engine, asks())[-1], Finished)
    assert jobs[1].started == 0.0


def test_a_known_long_video_is_not_watched_again(monkeypatch):
    engine = engine_of()
    engine.load_policies({"trained": tiny_policy()})
    watch, watched = engine.video_llm.watch, []
    monkeypatch.setattr(
        tiny_llm("llava_onevision"), "watch", lambda frames, fps: watched.append(1) or watch(frames, fps=fps)
    )
    texts = {text_of(one(engine, asks(compression=FEW), long_clip())) for _ in range(2)}
    assert (len(texts), len(watched)) == (1, 6)
