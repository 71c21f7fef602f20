"""Decoding processes that hang, die, are given up or are too many."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import psutil
import pytest

from serving.config import MediaConfig
from serving.errors import ApiError
from serving.media.records import Clip, Sampling, VideoInput
from serving.media.sandbox import Sandbox
from tests.support.https_server import HttpsServer, https_server
from tests.support.processes import decoders, templates
from tests.support.serving_videos import clip_bytes, data_url
from tests.support.video_files import grey_levels, write_video
from tests.support.waiting import until
from tests.unit.serving.test_fetch import LOOPBACK
from tests.unit.serving.test_media import read_all

SMALL = VideoInput("data", data_url(clip_bytes()).partition(",")[2], Sampling())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with https_server(tmp_path_factory.mktemp("https")) as running:
        yield running


def hanging(server: HttpsServer) -> VideoInput:
    return VideoInput("https", server.url("/trickle"), Sampling())


def with_sandbox(server: HttpsServer, work: Callable[[Sandbox], Awaitable[Any]], **config) -> Any:
    """The outcome of ``work`` with a sandbox that may fetch from ``server``."""
    settings = MediaConfig(
        https_hosts=(f"localhost:{server.port}",),
        private_networks=(*LOOPBACK, "::1/128"),
        ca_file=str(server.ca_file),
        **config,
    )

    async def inside() -> Any:
        sandbox = Sandbox(settings, default_frames=8, retry_after_s=7)
        try:
            return await work(sandbox)
        finally:
            sandbox.close()

    return asyncio.run(inside())


def test_a_greedy_decoder_is_refused_and_the_next_video_is_read(tmp_path):
    """64 sampled frames do not fit into the address space given: allocation fails in the process, not here."""
    path = write_video(tmp_path / "big.mp4", grey_levels(3), size=(1920, 1080))
    urls = [f"file://{path}", data_url(clip_bytes())]
    limits = {"file_root": str(tmp_path), "job_memory_bytes": 260 << 20, "max_decoded_bytes": 1 << 30}
    greedy, small = read_all(urls, Sampling(num_frames=64), **limits)
    assert (greedy.status, greedy.code) == (422, "video_too_large")
    assert small.frames.shape[0] == 64


def test_a_fetch_that_hangs_is_killed_at_its_deadline(server):
    async def work(sandbox: Sandbox) -> tuple[str, Clip]:
        with pytest.raises(ApiError) as caught:
            await sandbox.read(hanging(server))
        return caught.value.code, await sandbox.read(SMALL)

    started = time.perf_counter()
    code, clip = with_sandbox(server, work, job_timeout_s=1.0)
    assert time.perf_counter() - started < 30, "the server would have gone on for a minute"
    assert code == "video_timeout"
    assert clip.frames.shape[0] == 8


def test_a_decoding_process_that_is_killed_gives_a_refusal_and_the_template_lives(server):
    async def work(sandbox: Sandbox) -> Clip:
        task = asyncio.create_task(sandbox.read(hanging(server)))
        await until(decoders)
        decoders()[0].kill()
        with pytest.raises(ApiError, match="broke its decoder"):
            await task
        return await sandbox.read(SMALL)

    assert with_sandbox(server, work).frames.shape[0] == 8
    assert not decoders()


def test_a_request_that_is_given_up_ends_its_decoding_process(server):
    async def work(sandbox: Sandbox) -> None:
        task = asyncio.create_task(sandbox.read(hanging(server)))
        await until(decoders)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not decoders())
        assert sandbox.held == 0

    with_sandbox(server, work)


def test_a_request_that_is_given_up_while_the_template_starts_leaves_its_process_to_nobody(server):
    others = len(held_processes())  # of services that other tests run

    async def work(sandbox: Sandbox) -> None:
        task = asyncio.create_task(sandbox.read(hanging(server)))
        await until(templates)
        task.cancel()
        for outcome in await asyncio.gather(task, sandbox.read(hanging(server)), return_exceptions=True):
            assert isinstance(outcome, (asyncio.CancelledError, ApiError))
        await until(lambda: not decoders(), 30)  # the second one is killed at its deadline
        assert len(held_processes()) == others + 1, "that which waits"

    with_sandbox(server, work, job_timeout_s=0.6)
    assert len(held_processes()) == others


def test_the_next_process_waits_for_its_video_and_is_replaced_where_it_has_died(server):
    def waiting() -> list[psutil.Process]:
        return [child for template in templates() for child in template.children()]

    others = waiting()  # of services that other tests run

    async def own() -> psutil.Process:
        await until(lambda: len(waiting()) == len(others) + 1)
        (process,) = (each for each in waiting() if each not in others)
        return process

    async def work(sandbox: Sandbox) -> Clip:
        await sandbox.read(SMALL)
        first = await own()
        await sandbox.read(SMALL)
        await until(lambda: first not in waiting())  # one video, one process
        second = await own()
        second.kill()
        await until(lambda: waiting() == others)
        return await sandbox.read(SMALL)

    assert with_sandbox(server, work).frames.shape[0] == 8
    assert waiting() == others


def test_more_videos_than_may_wait_are_turned_away(server):
    async def work(sandbox: Sandbox) -> list[Any]:
        return await asyncio.gather(*(sandbox.read(hanging(server)) for _ in range(4)), return_exceptions=True)

    errors = with_sandbox(server, work, concurrent_jobs=1, waiting_jobs=1, job_timeout_s=0.6)
    assert [error.code for error in errors] == ["video_timeout", "video_timeout", "overloaded", "overloaded"]
    assert (errors[2].status, errors[2].retry_after_s) == (503, 7)


def held_processes() -> list[str]:
    """This process's descriptors of other processes."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{entry}"))
    return [target for target in found if "pidfd" in target]
