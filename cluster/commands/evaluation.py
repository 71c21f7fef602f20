"""The body of ``cacovid evaluate``: checks, loads, measures, reports."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cacovid.compressor import model_config_for
from cacovid.config import ModelConfig, SelectionConfig
from cacovid.data.reader import ItemReader
from cacovid.data.skipped import SkippedItems
from cacovid.embedded.items import evaluation_items
from cacovid.errors import UserError
from cacovid.evaluation.measuring import check_retentions, evaluate
from cacovid.evaluation.reports.files import write_report
from cacovid.evaluation.result import EvaluationResult
from cacovid.methods.registry import KNOWN, POLICY, UNTRAINED, build_methods, check_names, check_needs
from cacovid.models.loading import load_video_llm
from cacovid.policy.base import CompressionPolicy
from cacovid.records import VideoQuestion
from cluster.commands.shared import output_folder

SKIPPED = "skipped-evaluation.jsonl"  # beside a run's own skipped.jsonl where both share a folder
LINES = 10  # progress lines where there is no terminal


@dataclass(frozen=True)
class EvaluationRequest:
    """The command's arguments; None leaves the choice to the policies and the data."""

    policies: Mapping[str, Path]  # by label
    retentions: tuple[float, ...]
    methods: tuple[str, ...] | None
    data: str
    clips: int | None
    split: str
    model: str | None
    frames: int | None
    rule: str | None
    seed: int
    max_skipped: float
    out: Path
    overwrite: bool


def run_evaluation(request: EvaluationRequest) -> EvaluationResult:
    """Measure, print the table and write the reports.

    Raises:
        UserError: any argument that cannot be used; cheap checks come before anything is loaded.
    """
    check_retentions(request.retentions)
    if request.methods is not None:
        check_names(request.methods)
    selection = None if request.rule is None else selection_rule(request.rule)
    policies = {label: CompressionPolicy.from_pretrained(folder) for label, folder in request.policies.items()}
    folder = output_folder(request.out, request.overwrite)
    (folder / SKIPPED).unlink(missing_ok=True)
    skipped = SkippedItems(folder / SKIPPED, request.max_skipped)
    items = evaluation_items(request.data, request.split, request.clips, folder, skipped)
    names = request.methods or _possible_methods(bool(policies), items)
    check_needs(names, with_policy=bool(policies), items=items)
    reader = _reader(request, policies)
    methods = build_methods(names, policies, reader.video_llm, seed=request.seed, selection=selection)
    console = Console()
    with _progress(console) as advance:
        result = evaluate(
            reader, methods, items, request.retentions, seed=request.seed, skipped=skipped, progress=advance
        )
    paths = write_report(result, folder)
    console.print(result_table(result))
    for path in (*paths.values(), *([skipped.path] if skipped.skipped else [])):
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
    return result


def selection_rule(name: str) -> SelectionConfig:
    """The selection rule ``name`` with its default settings. Raises UserError for an unknown one."""
    try:
        return SelectionConfig.model_validate({"rule": name})
    except ValidationError:
        raise UserError(f"unknown selection rule {name!r}: choose global, half-uniform or frame-budgets") from None


def result_table(result: EvaluationResult) -> Table:
    """Accuracy in percent by method and ratio, for the terminal."""
    table = Table(
        title=f"{escape(result.model)}: accuracy in % on {result.questions} questions, {result.clips} clips "
        f"(all tokens {100 * result.full_accuracy:.1f}); ± one standard error, clustered by video"
    )
    table.add_column("method", no_wrap=True)
    for retention in result.retentions:
        table.add_column(f"{100 * retention:g} %", justify="right")
    table.add_column("AUC", justify="right")
    for method in result.methods:
        rows = [result.row(method, retention) for retention in result.retentions]
        area = result.question_awareness.get(method)
        cells = [f"{100 * row.accuracy:.1f} ±{100 * row.stderr:.1f}" for row in rows]
        table.add_row(escape(method), *cells, "-" if area is None else f"{area:.3f}")
    return table


def _reader(request: EvaluationRequest, policies: Mapping[str, CompressionPolicy]) -> ItemReader:
    """The Video-LLM that the policies were trained with, read as in their training."""
    metadata = [policy.metadata for policy in policies.values()]
    if metadata:
        ways = {(each.num_frames, each.positions, each.instruction) for each in metadata}
        if len(ways) > 1:
            raise UserError(
                "the policies were trained with different frame counts, positions or instructions; evaluate them apart"
            )
        config = model_config_for(metadata[0], request.model, num_frames=request.frames)
        return ItemReader(load_video_llm(config), config.num_frames, instruction=metadata[0].instruction)
    config = ModelConfig(path=request.model or "embedded")
    if request.frames is not None:
        config = config.model_copy(update={"num_frames": request.frames})
    return ItemReader(load_video_llm(config), config.num_frames)


def _possible_methods(with_policy: bool, items: list[VideoQuestion]) -> tuple[str, ...]:
    """Every known method that neither lacks a policy nor evidence."""
    impossible = set() if with_policy else {POLICY, UNTRAINED}
    if not all(item.evidence for item in items):
        impossible.add("oracle")
    return tuple(name for name in KNOWN if name not in impossible)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A live bar on a terminal, a line now and then elsewhere."""
    columns = (
        TextColumn("evaluating"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("evaluating")

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if not console.is_terminal and (done % max(1, total // LINES) == 0 or done == total):
                console.print(f"evaluated {done}/{total} questions", highlight=False)

        yield advance
