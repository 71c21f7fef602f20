"""The embedding cache returns what was stored, stays within its bound and survives damage and company."""

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cacovid.data.cache import EmbeddingCache, feature_key
from cacovid.models.encoded import VideoFeatures
from cacovid.records import TokenGrid


def features(seed: int = 0, tokens: int = 24, dtype: torch.dtype = torch.float32, levels: int = 0) -> VideoFeatures:
    draw = torch.Generator().manual_seed(seed)

    def rows(count: int) -> torch.Tensor:
        return torch.randn(count, 8, generator=draw).to(dtype)

    return VideoFeatures(
        features=rows(tokens),
        grid=TokenGrid(2, 3, tokens // 6),
        placeholder="<video>",
        pinned=rows(1),
        pinned_slots=(tokens,),
        deepstack=tuple(rows(tokens) for _ in range(levels)),
        seconds_per_step=0.5,
    )


def same(first: VideoFeatures, second: VideoFeatures) -> bool:
    ours, theirs = first.tensors(), second.tensors()
    return (
        first.metadata() == second.metadata()
        and ours.keys() == theirs.keys()
        and all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours)
    )


def key_of(number: int) -> str:
    return feature_key(f"video {number}", "model", 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("levels", [0, 2])
def test_what_was_stored_comes_back(tmp_path: Path, dtype: torch.dtype, levels: int) -> None:
    cache = EmbeddingCache(tmp_path, 1_000_000)
    stored = features(dtype=dtype, levels=levels)
    cache.put(key_of(0), stored)
    found = cache.get(key_of(0))
    assert found is not None
    assert same(found, stored)
    assert cache.get(key_of(1)) is None


def test_features_without_pinned_rows_are_stored(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, 1_000_000)
    bare = replace(features(), pinned=torch.empty(0, 8), pinned_slots=())
    cache.put(key_of(0), bare)
    found = cache.get(key_of(0))
    assert found is not None
    assert same(found, bare)


def test_writing_to_a_mapped_tensor_does_not_reach_the_file(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, 1_000_000)
    cache.put(key_of(0), features())
    found = cache.get(key_of(0))
    assert found is not None
    found.features.zero_()
    again = cache.get(key_of(0))
    assert again is not None
    assert same(again, features())


def test_an_entry_in_use_outlives_its_eviction(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, 1_000_000)
    cache.put(key_of(0), features())
    found = cache.get(key_of(0))
    next(tmp_path.glob("*.arrow")).unlink()
    assert found is not None
    assert same(found, features())


def test_the_key_depends_on_video_model_and_frames() -> None:
    keys = {feature_key("a", "m", 8), feature_key("b", "m", 8), feature_key("a", "n", 8), feature_key("a", "m", 16)}
    assert len(keys) == 4


def on_disk(cache: EmbeddingCache) -> int:
    return sum(path.stat().st_size for path in cache.folder.glob("*.arrow"))


def entry_size(folder: Path) -> int:
    cache = EmbeddingCache(folder / "probe", 1_000_000)
    cache.put(key_of(0), features())
    return on_disk(cache)


def test_the_bound_holds_and_the_least_recently_used_go_first(tmp_path: Path) -> None:
    size = entry_size(tmp_path)
    cache = EmbeddingCache(tmp_path / "cache", 4 * size)
    for number in range(4):
        cache.put(key_of(number), features(number))
        os.utime(cache.folder / f"{key_of(number)}.arrow", (number, number))
    assert cache.get(key_of(0)) is not None  # the use makes it the youngest
    cache.put(key_of(4), features(4))
    assert on_disk(cache) <= 4 * size
    assert cache.get(key_of(1)) is None
    assert cache.get(key_of(0)) is not None
    assert cache.get(key_of(4)) is not None


def test_many_entries_never_exceed_the_bound(tmp_path: Path) -> None:
    size = entry_size(tmp_path)
    cache = EmbeddingCache(tmp_path / "cache", 7 * size + size // 2)
    for number in range(40):
        cache.put(key_of(number), features(number))
        assert on_disk(cache) <= 7 * size + size // 2
    assert on_disk(cache) >= 5 * size


def test_storing_a_key_again_does_not_fill_the_cache(tmp_path: Path) -> None:
    size = entry_size(tmp_path)
    cache = EmbeddingCache(tmp_path / "cache", 3 * size)
    cache.put(key_of(0), features(0))
    for _ in range(20):
        cache.put(key_of(1), features(1))
    assert cache.get(key_of(0)) is not None


def test_an_entry_beyond_the_bound_is_not_stored_and_zero_turns_the_cache_off(tmp_path: Path) -> None:
    size = entry_size(tmp_path)
    small = EmbeddingCache(tmp_path / "small", size - 1)
    small.put(key_of(0), features())
    assert small.get(key_of(0)) is None
    off = EmbeddingCache(tmp_path / "off", 0)
    off.put(key_of(0), features())
    assert off.get(key_of(0)) is None
    assert not (tmp_path / "off").exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "noise", "flipped bit", "another key"])
def test_a_corrupt_entry_is_removed_with_a_warning_and_can_be_stored_again(tmp_path: Path, damage: str) -> None:
    cache = EmbeddingCache(tmp_path, 1_000_000)
    cache.put(key_of(0), features())
    path = tmp_path / f"{key_of(0)}.arrow"
    content = path.read_bytes()
    row = features().features.numpy().tobytes()
    start = content.index(row)
    flipped = bytearray(content)
    flipped[start + 40] ^= 1
    contents = {
        "truncated": content[: len(content) // 2],
        "empty": b"",
        "noise": os.urandom(2_000),
        "flipped bit": bytes(flipped),
        "another key": content.replace(key_of(0).encode(), key_of(1).encode()),
    }
    path.write_bytes(contents[damage])
    with pytest.warns(UserWarning, match="corrupt"):
        assert cache.get(key_of(0)) is None
    assert not path.exists()
    cache.put(key_of(0), features())
    assert cache.get(key_of(0)) is not None


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    size = entry_size(tmp_path)
    cache = EmbeddingCache(tmp_path / "cache", 2 * size)
    leftover = cache.folder / "x.tmp"
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    for number in range(4):
        cache.put(key_of(number), features(number))
    assert not leftover.exists()


def hammer(folder: str, bound: int, seed: int) -> int:
    """Reads and writes in one process; returns how many entries came back wrong."""
    cache = EmbeddingCache(folder, bound)
    wrong = 0
    for turn in range(60):
        number = (turn * 7 + seed * 3) % 12
        found = cache.get(key_of(number))
        if found is None:
            cache.put(key_of(number), features(number))
        elif not same(found, features(number)):
            wrong += 1
    return wrong


def test_several_processes_share_one_cache(tmp_path: Path) -> None:
    size = entry_size(tmp_path)
    bound = 6 * size
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of other threads
    with context.Pool(3, initializer=context.Barrier(3).wait) as pool:  # all of them run before one begins
        wrong = pool.starmap(hammer, [(str(tmp_path / "cache"), bound, seed) for seed in range(3)])
    assert wrong == [0, 0, 0]
    cache = EmbeddingCache(tmp_path / "cache", bound)
    assert 0 < on_disk(cache) <= bound
    assert int((tmp_path / "cache" / "total").read_text()) == on_disk(cache)
    assert not list((tmp_path / "cache").glob("*.tmp"))
