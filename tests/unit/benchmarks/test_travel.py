"""The table of lengths: it prints, and answers depend on the kind of positions where the prompt is long."""

from pathlib import Path

import pytest

from benchmarks.travel import ALL, main, measure
from cacovid.compressor import Compressor
from cacovid.config import ModelConfig, TrainConfig
from cacovid.embedded.rendering import SEEN
from cacovid.embedded.splits import DEVELOPMENT
from cacovid.models.loading import load_video_llm
from cacovid.policy.build import policy_for


def test_the_table_has_a_row_a_length_for_both_kinds_of_clutter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = load_video_llm(ModelConfig(device="cpu"))
    policy_for(llm, TrainConfig()).save_pretrained(tmp_path / "policy")
    main(tmp_path, clips=1, frames="8,16", retention="0.1", split="development")
    printed = capsys.readouterr().out
    for title in ("seen clutter: accuracy in % on 2 questions", "unseen clutter: accuracy in % on 2 questions"):
        assert title in printed
    assert printed.count("│ 16 ") == 2
    compressor = Compressor.from_pretrained(tmp_path / "policy")
    found = measure(compressor, DEVELOPMENT[:2], 16, SEEN, [0.1])
    assert found.tokens == 576
    assert {name for name, _ in found.right} == {ALL, "original", "contiguous"}
    assert all(tally.count == 4 for tally in (*found.right.values(), found.auc))
