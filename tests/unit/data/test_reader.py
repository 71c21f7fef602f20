"""A video is decoded and encoded once, whoever asks about it and however often."""

from pathlib import Path

import pytest
import torch

from cacovid.config import DataConfig, ModelConfig
from cacovid.data.reader import ItemReader
from cacovid.data.table import read_questions
from cacovid.embedded.dataset import TABLE, write_dataset
from cacovid.embedded.splits import split_seeds
from cacovid.models.adapter import VideoLLM
from cacovid.records import VideoQuestion


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[VideoQuestion]:
    """Two questions on each of two clips."""
    folder = tmp_path_factory.mktemp("clips")
    write_dataset(folder, split_seeds("train", 2))
    return read_questions(folder / TABLE)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each run of the vision tower."""
    calls: list[int] = []
    watch = VideoLLM.watch

    def counted(self: VideoLLM, *args: object, **kwargs: object) -> object:
        calls.append(1)
        return watch(self, *args, **kwargs)

    monkeypatch.setattr(VideoLLM, "watch", counted)
    return calls


def test_two_questions_about_a_video_share_its_features(items: list[VideoQuestion], watched: list[int]) -> None:
    reader = ItemReader.load(ModelConfig(), DataConfig())
    first, second = reader.encode(items[0]), reader.encode(items[1])
    assert len(watched) == 1
    assert torch.equal(first.features, second.features)
    assert not torch.equal(first.input_ids, second.input_ids)
    assert reader.encode_seconds > 0


def test_cache_serves_other_readers_exactly(items: list[VideoQuestion], watched: list[int], tmp_path: Path) -> None:
    writer = ItemReader.load(ModelConfig(), DataConfig(), tmp_path)
    written = [writer.encode(item) for item in items]
    assert len(watched) == 2
    reader = ItemReader.load(ModelConfig(), DataConfig(), tmp_path)
    for item, expected in zip(items, written, strict=True):
        found = reader.encode(item)
        assert torch.equal(found.features, expected.features)
        assert torch.equal(found.text_embeds, expected.text_embeds)
    assert len(watched) == 2


def test_another_frame_count_is_another_entry(items: list[VideoQuestion], watched: list[int], tmp_path: Path) -> None:
    ItemReader.load(ModelConfig(), DataConfig(), tmp_path).encode(items[0])
    four = ItemReader.load(ModelConfig(num_frames=4), DataConfig(), tmp_path).encode(items[0])
    assert len(watched) == 2
    assert four.grid.frames == 4


def test_cache_of_zero_bytes_is_off(items: list[VideoQuestion], watched: list[int], tmp_path: Path) -> None:
    for _ in range(2):
        ItemReader.load(ModelConfig(), DataConfig(cache_bytes=0), tmp_path).encode(items[0])
    assert len(watched) == 2
    assert not list(tmp_path.iterdir())
