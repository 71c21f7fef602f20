"""Decoding processes: frames, limits, and what happens to one that misbehaves."""

import asyncio
import time

import numpy as np
import psutil
import pytest

from cacovid.data.video import read_frames
from serving.config import MediaConfig
from serving.errors import ApiError
from serving.media.decode import frames_wanted
from serving.media.records import Clip, Sampling, VideoInput
from serving.media.sandbox import Sandbox
from serving.media.urls import parse_video_url
from tests.https_server import https_server
from tests.serving_videos import clip_bytes, data_url, frames_url, huge_frame, jpeg, many_frames
from tests.unit.test_serving_fetch import LOOPBACK
from tests.video_files import grey_levels, write_audio, write_video


def read(url: str, sampling: Sampling | None = None, **config) -> Clip:
    """One video through a sandbox of its own."""
    settings = MediaConfig(**config)

    async def through() -> Clip:
        sandbox = Sandbox(settings, default_frames=8)
        try:
            return await sandbox.read(parse_video_url(url, sampling or Sampling(), settings))
        finally:
            sandbox.close()

    return asyncio.run(through())


def refused(url: str, sampling: Sampling | None = None, **config) -> str:
    with pytest.raises(ApiError) as caught:
        read(url, sampling, **config)
    assert "/" not in caught.value.message, "no path or address in what clients read"
    assert caught.value.status == 422
    return caught.value.code


def test_frames_are_those_that_the_library_reads(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(clip_bytes())
    expected = read_frames(tmp_path / "clip.mp4", 8)
    clip = read(data_url(clip_bytes()))
    assert np.array_equal(clip.frames, expected.frames)
    assert (clip.timestamps, clip.duration_s, clip.fps) == (expected.timestamps, expected.duration_s, expected.fps)


def test_the_same_content_has_the_same_key_and_other_sampling_another(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(clip_bytes())
    one = read(data_url(clip_bytes()))
    same = read(f"file://{tmp_path}/clip.mp4", file_root=str(tmp_path))
    fewer = read(data_url(clip_bytes()), Sampling(num_frames=4))
    other = read(data_url(clip_bytes(1)))
    assert one.key == same.key
    assert len({one.key, fewer.key, other.key}) == 3


def test_jpeg_frames_are_a_video_of_one_frame_a_second():
    pictures = [jpeg(level=level) for level in (20, 120, 220)]
    clip = read(frames_url(*pictures), Sampling(num_frames=3))
    assert clip.frames.shape == (3, 96, 96, 3)
    assert [round(float(frame.mean()), -1) for frame in clip.frames] == [20, 120, 220]
    assert clip.duration_s == 3.0


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), 8),
        (Sampling(num_frames=3), 3),
        (Sampling(num_frames=10**9), 16),
        (Sampling(num_frames=-1), 16),
        (Sampling(num_frames=0), 1),
        (Sampling(fps=0.5), 5),
        (Sampling(fps=1e300), 16),
        (Sampling(fps=1e-300), 1),
        (Sampling(num_frames=2, fps=5.0), 2),
        (Sampling(num_frames=12, max_frames=6), 6),
        (Sampling(max_frames=10**6), 8),
    ],
)
def test_frame_counts_are_clamped(sampling, expected):
    assert frames_wanted(sampling, duration_s=10.0, source_frames=250, default=8, limit=16) == expected


def test_videos_that_are_none_are_refused(tmp_path):
    audio = write_audio(tmp_path / "sound.mp4").read_bytes()
    cases = {
        "text": b"hello, this is no video at all",
        "truncated": clip_bytes()[:1200],
        "png": b"\x89PNG\r\n\x1a\n" + b"\x00" * 200,
        "elf": b"\x7fELF" + b"\x00" * 500,
        "html and mp4": b"<html><script>alert(1)</script>" + clip_bytes(),
        "sound": audio,
        "playlist": b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "zeros": b"\x00" * 4096,
    }
    for content in cases.values():
        assert refused(data_url(content)) == "unreadable_video"
    assert refused("data:video/mp4;base64,@@@@") == "invalid_base64"


def test_a_video_behind_other_bytes_that_decodes_is_still_only_a_video():
    """A polyglot whose video part comes first gives its frames and nothing else."""
    clip = read(data_url(clip_bytes() + b"PK\x03\x04<?php system('id'); ?>"))
    assert clip.frames.shape[0] == 8


def test_limits_of_duration_frames_pixels_and_memory_are_held(tmp_path):
    long = write_video(tmp_path / "long.mp4", grey_levels(3), milliseconds=[0, 1000, 900_000]).read_bytes()
    assert refused(data_url(long), max_duration_s=600.0) == "video_too_long"
    assert refused(data_url(clip_bytes()), max_source_frames=7) == "too_many_frames"
    assert refused(data_url(clip_bytes()), max_pixels=96 * 96 - 1) == "frame_too_large"
    assert refused(data_url(clip_bytes()), max_decoded_bytes=100_000) == "video_too_large"
    assert refused(data_url(clip_bytes()), max_bytes=len(clip_bytes()) - 1) == "video_too_large"


def test_a_file_of_a_hundred_thousand_frames_is_refused_from_its_index(tmp_path):
    path = many_frames(tmp_path / "many.mp4", 100_000)
    assert refused(f"file://{path}", file_root=str(tmp_path)) == "too_many_frames"


def test_frames_of_sixteen_thousand_pixels_a_side_are_refused_from_the_header(tmp_path):
    path = huge_frame(tmp_path / "huge.avi")
    assert refused(f"file://{path}", file_root=str(tmp_path)) == "frame_too_large"
    assert refused(frames_url(jpeg((16_000, 2_000)))) == "frame_too_large"


def test_jpeg_frames_that_are_none_or_differ_in_size_are_refused():
    assert refused(frames_url(jpeg(), b"no jpeg")) == "unreadable_video"
    assert refused(frames_url(jpeg(), jpeg((64, 64)))) == "mixed_sizes"
    assert refused(frames_url(*[jpeg()] * 9), max_source_frames=8) == "too_many_frames"
    assert refused(frames_url(jpeg()[:200])) == "unreadable_video"


def test_a_greedy_decoder_is_refused_and_the_next_video_is_read(tmp_path):
    """Frames of 4K do not fit into the address space given: allocation fails in the process, not here."""
    path = write_video(tmp_path / "big.mp4", grey_levels(16), size=(3840, 2160))
    url = f"file://{path}"
    settings = MediaConfig(file_root=str(tmp_path), job_memory_bytes=260 << 20, max_decoded_bytes=1 << 30)

    async def both() -> Clip:
        sandbox = Sandbox(settings, default_frames=16)
        try:
            with pytest.raises(ApiError) as caught:
                await sandbox.read(parse_video_url(url, Sampling(num_frames=16), settings))
            assert caught.value.status == 422
            return await sandbox.read(parse_video_url(data_url(clip_bytes()), Sampling(num_frames=2), settings))
        finally:
            sandbox.close()

    assert asyncio.run(both()).frames.shape[0] == 2


def test_a_fetch_that_hangs_is_killed_at_its_deadline(tmp_path):
    with https_server(tmp_path) as server:
        hosts = (f"localhost:{server.port}",)
        limits = {"https_hosts": hosts, "private_networks": (*LOOPBACK, "::1/128"), "ca_file": str(server.ca_file)}
        started = time.perf_counter()
        assert refused(server.url("/trickle"), **limits, job_timeout_s=1.0) == "video_timeout"
        assert time.perf_counter() - started < 6
        server.files["/clip.mp4"] = clip_bytes()
        assert read(server.url("/clip.mp4"), **limits).frames.shape[0] == 8


def test_a_decoding_process_that_is_killed_gives_a_refusal_and_the_template_lives(tmp_path):
    with https_server(tmp_path) as server:
        settings = MediaConfig(
            https_hosts=(f"localhost:{server.port}",),
            private_networks=(*LOOPBACK, "::1/128"),
            ca_file=str(server.ca_file),
        )

        async def killed() -> Clip:
            sandbox = Sandbox(settings, default_frames=8)
            try:
                hanging = VideoInput("https", server.url("/trickle"), Sampling())
                task = asyncio.create_task(sandbox.read(hanging))
                while not (children := _decoders()):
                    await asyncio.sleep(0.02)
                children[0].kill()
                with pytest.raises(ApiError, match="broke its decoder"):
                    await task
                return await sandbox.read(VideoInput("data", data_url(clip_bytes()).partition(",")[2], Sampling()))
            finally:
                sandbox.close()

        assert asyncio.run(killed()).frames.shape[0] == 8
    assert not _decoders()


def test_a_request_that_is_given_up_ends_its_decoding_process(tmp_path):
    with https_server(tmp_path) as server:
        settings = MediaConfig(
            https_hosts=(f"localhost:{server.port}",), private_networks=LOOPBACK, ca_file=str(server.ca_file)
        )

        async def given_up() -> None:
            sandbox = Sandbox(settings, default_frames=8)
            try:
                task = asyncio.create_task(sandbox.read(VideoInput("https", server.url("/trickle"), Sampling())))
                while not _decoders():
                    await asyncio.sleep(0.02)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                for _ in range(100):
                    if not _decoders():
                        break
                    await asyncio.sleep(0.02)
                assert not _decoders()
                assert sandbox.held == 0
            finally:
                sandbox.close()

        asyncio.run(given_up())


def test_more_videos_than_may_wait_are_turned_away(tmp_path):
    with https_server(tmp_path) as server:
        settings = MediaConfig(
            https_hosts=(f"localhost:{server.port}",),
            private_networks=LOOPBACK,
            ca_file=str(server.ca_file),
            concurrent_jobs=1,
            waiting_jobs=1,
            job_timeout_s=0.6,
        )

        async def crowd() -> list[object]:
            sandbox = Sandbox(settings, default_frames=8, retry_after_s=7)
            try:
                videos = [VideoInput("https", server.url("/trickle"), Sampling())] * 4
                return await asyncio.gather(*(sandbox.read(video) for video in videos), return_exceptions=True)
            finally:
                sandbox.close()

        errors = asyncio.run(crowd())
    assert [error.code for error in errors] == ["video_timeout", "video_timeout", "overloaded", "overloaded"]
    assert (errors[2].status, errors[2].retry_after_s) == (503, 7)


def _decoders() -> list[psutil.Process]:
    """Decoding processes of this process's sandboxes: children of a template."""
    templates = [
        child for child in psutil.Process().children() if "serving.media.template" in " ".join(child.cmdline())
    ]
    return [child for template in templates for child in template.children()]
