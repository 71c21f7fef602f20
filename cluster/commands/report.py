"""``cacovid report``."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from cacovid.errors import UserError
from cluster.commands.progress import Progress
from cluster.commands.shared import Model, free, labelled_policies

if TYPE_CHECKING:
    from PIL.Image import Image

    from cacovid.records import VideoQuestion
    from cacovid.reporting.records import Gallery

DEVELOPMENT_CLIPS = 40  # drawn for --data embedded


def report(
    folders: Annotated[list[Path], typer.Argument(help="folders of runs, of evaluations or of both in one")],
    out: Annotated[Path, typer.Option(help="the HTML file")] = Path("report.html"),
    policy: Annotated[
        list[str] | None, typer.Option(help="policies of the gallery, DIR or LABEL=DIR; without it the runs' own")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="table of the gallery, or 'embedded' to draw clips; without it the evaluations' own clips"),
    ] = None,
    retention: Annotated[float, typer.Option(help="share of video tokens kept in the gallery")] = 0.05,
    questions: Annotated[int, typer.Option(min=1, help="questions to look at for the gallery")] = 60,
    pictures: Annotated[int, typer.Option(min=0, help="right and wrong ones drawn of each policy; 0: no gallery")] = 4,
    model: Model = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file if it exists")] = False,
) -> None:
    """Runs and evaluations as one HTML file: curves, tables, kept tokens, worst questions, configuration."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out} is no HTML file: give a name that ends in .html")
    free(out, overwrite)
    given = labelled_policies(policy or [])
    from cacovid.methods.selection import budget
    from cacovid.reporting.page import Report, write_page
    from cacovid.reporting.results import Evaluated
    from cacovid.reporting.worst import worst_questions
    from cluster.training.run_record import is_run, run_record

    budget(retention, 1)  # refuses a bad ratio before any work
    kinds = [(folder, is_run(folder), _is_evaluation(folder)) for folder in folders]
    for folder, run, evaluation in kinds:
        if not run and not evaluation:
            raise UserError(
                f"{folder} is neither a run (config.toml) nor an evaluation (results.json): name their folders"
            )
    runs = [folder for folder, run, _ in kinds if run]
    evaluated = [Evaluated.read(folder) for folder, _, evaluation in kinds if evaluation]
    records = [run_record(folder) for folder in runs]
    policies = given or {
        record.name: folder / "policy"
        for record, folder in zip(records, runs, strict=True)
        if (folder / "policy").is_dir()
    }
    with TemporaryDirectory() as drawn, Progress() as progress:
        items = _items(data, folders, Path(drawn)) if pictures or any(each.rows for each in evaluated) else []
        galleries = _galleries(policies, items, retention, questions, pictures, model, progress) if pictures else []
    by_id = {item.id: item for item in items}
    page = Report(
        title="CaCoVID: " + ", ".join(dict.fromkeys(folder.absolute().name for folder in folders)),
        runs=records,
        evaluations=[(each, worst_questions(each.rows, by_id)) for each in evaluated],
        galleries=galleries,
        pictures=None if galleries else _drawn_pictures(runs),
    )
    write_page(page, out)
    typer.echo(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")


def _is_evaluation(folder: Path) -> bool:
    from cacovid.evaluation.reports.files import RESULTS

    return (folder / RESULTS).is_file()


def _items(data: str | None, folders: Sequence[Path], drawn: Path) -> "list[VideoQuestion]":
    """The questions of ``data``, else of the clips that an evaluation drew; none if there are none."""
    from cacovid.data.skipped import SkippedItems
    from cacovid.data.table import read_questions
    from cacovid.embedded.dataset import TABLE, WORLDS
    from cacovid.embedded.items import evaluation_items
    from cacovid.embedded.splits import SPLITS

    skipped = SkippedItems(None)
    if data is not None and data in WORLDS:
        return evaluation_items(data, "development", DEVELOPMENT_CLIPS, drawn, skipped)
    if data is not None:
        return read_questions(data, skipped=skipped)
    tables = [
        table for folder in folders for split in SPLITS for table in sorted(folder.glob(f"clips-{split}-*/{TABLE}"))
    ]
    return read_questions(tables[0], skipped=skipped) if tables else []


def _galleries(
    policies: dict[str, Path],
    items: "Sequence[VideoQuestion]",
    retention: float,
    questions: int,
    pictures: int,
    model: str | None,
    progress: Progress,
) -> "list[Gallery]":
    """One for each policy; none without questions."""
    from cacovid.compressor import Compressor
    from cacovid.reporting.gallery import look_at

    return [
        look_at(
            Compressor.from_pretrained(folder, model),
            items,
            retention,
            policy=label,
            most=questions,
            pictures=pictures,
            progress=partial(progress.show, f"looking at {label}"),
        )
        for label, folder in policies.items()
        if items
    ]


def _drawn_pictures(runs: Sequence[Path]) -> "dict[str, Image]":
    """Those that lie in the runs' folders."""
    from PIL import Image

    return {path.stem: Image.open(path) for run in runs for path in sorted((run / "pictures").glob("*.png"))}
