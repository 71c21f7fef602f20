"""Videos into frames through decoding processes: sampling, keys and limits."""

import asyncio

import numpy as np
import pytest

from cacovid.data.video import read_frames
from serving.config import MediaConfig
from serving.errors import ApiError
from serving.media.decode import frames_wanted
from serving.media.records import Clip, Sampling
from serving.media.sandbox import Sandbox
from serving.media.urls import parse_video_url
from tests.support.serving_videos import clip_bytes, data_url, frames_url, huge_frame, jpeg, many_frames
from tests.support.video_files import grey_levels, write_audio, write_video


def read_all(urls: list[str], sampling: Sampling | None = None, **config) -> list[Clip | ApiError]:
    """Videos one after the other through one sandbox."""
    settings = MediaConfig(**config)

    async def through() -> list[Clip | ApiError]:
        sandbox = Sandbox(settings, default_frames=8)
        outcomes: list[Clip | ApiError] = []
        try:
            for url in urls:
                try:
                    outcomes.append(await sandbox.read(parse_video_url(url, sampling or Sampling(), settings)))
                except ApiError as error:
                    outcomes.append(error)
        finally:
            sandbox.close()
        return outcomes

    return asyncio.run(through())


def read(url: str, sampling: Sampling | None = None, **config) -> Clip:
    (outcome,) = read_all([url], sampling, **config)
    assert isinstance(outcome, Clip), outcome
    return outcome


def codes(urls: list[str], **config) -> list[str]:
    """Why each of the videos is refused."""
    outcomes = read_all(urls, **config)
    for outcome in outcomes:
        assert isinstance(outcome, ApiError)
        assert "/" not in outcome.message, "no path or address in what clients read"
        assert outcome.status == 422
    return [outcome.code for outcome in outcomes]


def refused(url: str, **config) -> str:
    return codes([url], **config)[0]


def test_frames_are_those_that_the_library_reads(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(clip_bytes())
    expected = read_frames(tmp_path / "clip.mp4", 8)
    clip = read(data_url(clip_bytes()))
    assert np.array_equal(clip.frames, expected.frames)
    assert (clip.timestamps, clip.duration_s, clip.fps) == (expected.timestamps, expected.duration_s, expected.fps)


def test_the_same_content_has_the_same_key_and_other_sampling_another(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(clip_bytes())
    urls = [data_url(clip_bytes()), f"file://{tmp_path}/clip.mp4", data_url(clip_bytes(1))]
    one, same, other = read_all(urls, file_root=str(tmp_path))
    fewer = read(urls[0], Sampling(num_frames=4))
    assert one.key == same.key
    assert len({one.key, fewer.key, other.key}) == 3


def test_jpeg_frames_are_a_video_of_one_frame_a_second():
    pictures = [jpeg(level=level) for level in (20, 120, 220)]
    clip = read(frames_url(*pictures), Sampling(num_frames=3))
    assert clip.frames.shape == (3, 96, 96, 3)
    assert [round(float(frame.mean()), -1) for frame in clip.frames] == [20, 120, 220]
    assert clip.duration_s == 3.0


def test_equal_pictures_at_other_times_have_another_key():
    """Some families read the times of the frames."""
    picture = jpeg()
    few, many = read_all([frames_url(*[picture] * count) for count in (2, 4)], Sampling(num_frames=2))
    assert np.array_equal(few.frames, many.frames)
    assert few.fps != many.fps
    assert few.key != many.key


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
    found = codes([*map(data_url, cases.values()), "data:video/mp4;base64,@@@@"])
    assert dict(zip(cases, found, strict=False)) == dict.fromkeys(cases, "unreadable_video")
    assert found[-1] == "invalid_base64"


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
    urls = [f"file://{path}", frames_url(jpeg((16_000, 2_000)))]
    assert codes(urls, file_root=str(tmp_path)) == ["frame_too_large"] * 2


def test_jpeg_frames_that_are_none_or_differ_in_size_are_refused():
    urls = [
        frames_url(jpeg(), b"no jpeg"),
        frames_url(jpeg(), jpeg((64, 64))),
        frames_url(jpeg()[:200]),
        frames_url(*[jpeg()] * 9),
    ]
    assert codes(urls, max_source_frames=8) == [
        "unreadable_video",
        "mixed_sizes",
        "unreadable_video",
        "too_many_frames",
    ]
