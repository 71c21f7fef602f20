"""The configurations that docs/scaling.md gives keep as many actors busy as it says."""

import re
from pathlib import Path

import pytest

from cacovid.config_files import load_config

DOCS = Path(__file__).parents[3] / "docs"
SNIPPETS = re.findall(r"```toml\n(.*?)```", (DOCS / "scaling.md").read_text(), re.DOTALL)


def test_there_is_one_for_8_64_and_1000_actors() -> None:
    assert [re.findall(r"^count = (\d+)", snippet, re.MULTILINE) for snippet in SNIPPETS] == [["8"], ["64"], ["1000"]]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_it_loads_and_gives_every_actor_work(snippet: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(snippet)
    config = load_config(file)
    assert config.busy_actors() >= 8 * config.actors.count  # 8 tasks each: two in flight and what a late step costs
    tasks = config.run.items_per_step * config.actors.parts_per_item // config.actors.items_per_task
    assert tasks >= 8 * config.actors.count
