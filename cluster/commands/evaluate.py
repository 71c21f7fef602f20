"""``cacovid evaluate``."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cacovid.errors import UserError
from cluster.commands.progress import Progress
from cluster.commands.shared import Frames, Model, Rule, labelled_policies, names, numbers, output_folder

if TYPE_CHECKING:
    from rich.table import Table

    from cacovid.data.reader import ItemReader
    from cacovid.evaluation.result import EvaluationResult
    from cacovid.policy.base import CompressionPolicy
    from cacovid.records import VideoQuestion

RETENTIONS = "1,0.25,0.2,0.15,0.1,0.05,0.02"
SKIPPED = "skipped-evaluation.jsonl"  # beside a run's own skipped.jsonl where both share a folder


def evaluate(
    policy: Annotated[
        list[str] | None, typer.Option(help="policy or run folder, DIR or LABEL=DIR; repeatable for one table")
    ] = None,
    retention: Annotated[str, typer.Option(help="shares of video tokens to keep, each in (0, 1]")] = RETENTIONS,
    methods: Annotated[
        str | None, typer.Option(help="comma-separated; without it all that the data and the policies allow")
    ] = None,
    data: Annotated[str, typer.Option(help="Parquet table of questions, or 'embedded' for our own clips")] = "embedded",
    clips: Annotated[
        int | None, typer.Option(min=1, help="videos to use; without it 250 embedded ones, all of a table")
    ] = None,
    split: Annotated[str, typer.Option(help="which embedded clips: held-out or development")] = "held-out",
    model: Model = None,
    frames: Frames = None,
    rule: Rule = None,
    seed: Annotated[int, typer.Option(min=0, help="of random methods and the untrained policy")] = 0,
    max_skipped: Annotated[float, typer.Option(min=0, max=1, help="stop when a larger share is unusable")] = 0.2,
    out: Annotated[Path, typer.Option(help="folder of results.json, results.md, results.png")] = Path(
        "runs/evaluation"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the reports that lie in --out")] = False,
) -> None:
    """Accuracy, evidence recall and question-awareness of selection methods at equal token budgets."""
    ratios, folders = numbers(retention, "--retention"), labelled_policies(policy or [])
    wanted = None if methods is None else names(methods)
    from cacovid.data.skipped import SkippedItems
    from cacovid.embedded.items import evaluation_items
    from cacovid.evaluation import measuring
    from cacovid.evaluation.reports.files import undefined_line, write_report
    from cacovid.methods.registry import build_methods, check_names, check_needs
    from cacovid.methods.selection import selection_rule
    from cacovid.policy.base import CompressionPolicy

    # Cheap checks come before anything is loaded.
    measuring.check_retentions(ratios)
    if wanted is not None:
        check_names(wanted)
    selection = None if rule is None else selection_rule(rule)
    policies = {label: CompressionPolicy.from_pretrained(folder) for label, folder in folders.items()}
    output_folder(out, overwrite)
    (out / SKIPPED).unlink(missing_ok=True)
    skipped = SkippedItems(out / SKIPPED, max_skipped)
    items = evaluation_items(data, split, clips, out, skipped)
    wanted = wanted or _possible_methods(bool(policies), items)
    check_needs(wanted, with_policy=bool(policies), items=items)
    reader = _reader(list(policies.values()), model, frames)
    built = build_methods(wanted, policies, reader.video_llm, seed=seed, selection=selection)
    with Progress() as progress:
        result = measuring.evaluate(
            reader, built, items, ratios, seed=seed, skipped=skipped, progress=partial(progress.show, "evaluating")
        )
    paths = write_report(result, out)
    progress.console.print(_table(result))
    for cell in result.undefined:
        progress.console.print(undefined_line(cell), highlight=False, markup=False, soft_wrap=True)
    for path in (*paths.values(), *([skipped.path] if skipped.skipped else [])):
        progress.console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)


def _possible_methods(with_policy: bool, items: "Sequence[VideoQuestion]") -> list[str]:
    """Every known method that neither lacks a policy nor evidence."""
    from cacovid.methods.registry import BASELINES, KNOWN, POLICY, UNTRAINED

    impossible = set() if with_policy else {POLICY, UNTRAINED}
    if not all(item.evidence for item in items):
        impossible |= {name for name, method in BASELINES.items() if method.needs_evidence}
    return [name for name in KNOWN if name not in impossible]


def _reader(policies: "Sequence[CompressionPolicy]", model: str | None, frames: int | None) -> "ItemReader":
    """The Video-LLM that the policies were trained with, read as in their training; the embedded one without any."""
    from cacovid.compressor import model_config_for
    from cacovid.data.reader import ItemReader
    from cacovid.models.loading import load_video_llm
    from cacovid.policy.files import PolicyMetadata

    metadata = [policy.metadata for policy in policies] or [PolicyMetadata(model_path="embedded")]
    if len({(each.num_frames, each.positions, each.instruction) for each in metadata}) > 1:
        raise UserError(
            "the policies were trained with different frame counts, positions or instructions; evaluate them apart"
        )
    config = model_config_for(metadata[0], model, num_frames=frames)
    return ItemReader(load_video_llm(config), config.num_frames, instruction=metadata[0].instruction)


def _table(result: "EvaluationResult") -> "Table":
    """Accuracy in percent by method and ratio."""
    from rich.markup import escape
    from rich.table import Table

    from cacovid.evaluation.reports.files import UNDEFINED
    from cacovid.evaluation.result import Row

    table = Table(
        title=f"{escape(result.model)}: accuracy in % on {result.questions} questions, {result.clips} clips "
        f"(all tokens {100 * result.full_accuracy:.1f})",
        caption="± one standard error, clustered by video",
    )
    table.add_column("method", no_wrap=True)
    for retention in result.retentions:
        table.add_column(f"{100 * retention:g} %", justify="right")
    table.add_column("AUC", justify="right")
    for method in result.methods:
        rows = [result.cell(method, retention) for retention in result.retentions]
        area = result.question_awareness.get(method)
        cells = [
            f"{100 * row.accuracy:.1f} ±{100 * row.stderr:.1f}" if isinstance(row, Row) else UNDEFINED for row in rows
        ]
        table.add_row(escape(method), *cells, "-" if area is None else f"{area:.3f}")
    return table
