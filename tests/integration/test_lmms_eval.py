"""lmms-eval itself, in an environment of its own: it counts what we count, by the plug-in and over HTTP."""

from pathlib import Path

import pytest

from cacovid.data.reader import ItemReader
from cacovid.data.table import read_questions
from cacovid.embedded.dataset import TABLE, write_dataset
from cacovid.embedded.splits import split_seeds
from cacovid.evaluation.measuring import evaluate
from cacovid.harness.task import write_task
from cacovid.methods.registry import build_methods
from cacovid.policy.base import CompressionPolicy
from tests.support.lmms_eval import Harness, NotInstallable
from tests.support.serving_server import KEY, POLICY, embedded_llm, policy_folder, running, service_config

pytestmark = [pytest.mark.lmms_eval, pytest.mark.timeout(3600)]
RETENTION = 0.05


@pytest.fixture(scope="module")
def harness() -> Harness:
    try:
        return Harness.ready()
    except NotInstallable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions on twenty embedded clips."""
    folder = tmp_path_factory.mktemp("harness")
    write_dataset(folder, split_seeds("development", 20))
    write_task(folder / TABLE, folder / "tasks")
    return folder / TABLE


def ours(table: Path, method: str) -> float:
    """The accuracy that our own evaluation finds."""
    policies = {"policy": CompressionPolicy.from_pretrained(policy_folder())}
    methods = build_methods([method], policies, embedded_llm(), seed=0)
    found = evaluate(ItemReader(embedded_llm(), 8), methods, read_questions(table), [RETENTION])
    return found.row(method, RETENTION).accuracy


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("policy", {"policy": policy_folder}),
        ("text-cosine", {"pretrained": "embedded", "method": "text-cosine"}),
    ],
)
def test_the_harness_finds_our_accuracy(harness: Harness, table: Path, tmp_path: Path, method, arguments) -> None:
    given = {name: value() if callable(value) else value for name, value in arguments.items()}
    found = harness.evaluate(table.parent / "tasks", tmp_path, "cacovid", **given, retention=RETENTION, device="cpu")
    expected = ours(table, method)
    assert found.accuracy == expected
    assert 0.25 < expected < 1  # neither chance nor a matter of course


def test_over_http_the_answers_are_the_same(harness: Harness, table: Path, tmp_path: Path) -> None:
    """lmms-eval's own client of OpenAI-compatible servers, against ours."""
    tasks = table.parent / "tasks"
    direct = harness.evaluate(tasks, tmp_path / "direct", "cacovid", policy=policy_folder(), retention=RETENTION)
    config = service_config(media={"file_root": str(table.parent)}, engine={"default_retention": RETENTION})
    with running(config) as server:
        found = harness.evaluate(
            tasks,
            tmp_path / "http",
            "openai",
            model=POLICY,
            base_url=f"{server.url}/v1",
            api_key=KEY,
            pass_video_url=True,
            max_frames_num=8,
            num_concurrent=4,
            timeout=120,
        )
    assert found.answers == direct.answers
    assert found.accuracy == direct.accuracy == ours(table, "policy")


def test_a_mistake_is_named(harness: Harness, table: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="outside"):
        harness.evaluate(table.parent / "tasks", tmp_path, "cacovid", pretrained="embedded", retention=2)
