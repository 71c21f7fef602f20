"""``cacovid evaluate``."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cacovid.errors import UserError
from cluster.commands.progress import Progress
from cluster.commands.result_tables import print_result
from cluster.commands.shared import Frames, Model, Rule, labelled_policies, names, numbers, output_folder

if TYPE_CHECKING:
    from rich.console import Console

    from cacovid.config import ActorsConfig, SelectionConfig
    from cacovid.evaluation.measurer import Setup
    from cacovid.evaluation.measuring import Asked, Outcome
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
    controls: Annotated[
        str, typer.Option(help="'swapped': also compress for another question about the clip, then ask this one")
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="of random methods, the untrained policy and the bootstrap")] = 0,
    max_skipped: Annotated[float, typer.Option(min=0, max=1, help="stop when a larger share is unusable")] = 0.2,
    actors: Annotated[int, typer.Option(min=0, help="rollout actors; 0 measures in this process")] = 0,
    max_actors: Annotated[int, typer.Option(min=0, help="most actors of an elastic pool; 0: always --actors")] = 0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of one actor")] = 0.0,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; without it one is started here")] = None,
    cache: Annotated[Path | None, typer.Option(help="folder of encoded videos; without it in --out")] = None,
    out: Annotated[Path, typer.Option(help="folder of the reports, and of the rows they sum up")] = Path(
        "runs/evaluation"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what lies in --out, begin anew")] = False,
) -> None:
    """Accuracy, significance, tokens and times of compression methods at equal budgets; again: it goes on."""
    ratios, folders = numbers(retention, "--retention"), labelled_policies(policy or [])
    wanted = None if methods is None else names(methods)
    swapped = _swapped(controls)
    from cacovid.data.skipped import SkippedItems
    from cacovid.embedded.items import evaluation_items
    from cacovid.evaluation.measuring import TIMED, check_retentions, gather, plan, unknown
    from cacovid.evaluation.reports.files import write_report
    from cacovid.evaluation.rows import RowStore
    from cacovid.methods.registry import check_names, check_needs
    from cacovid.methods.selection import selection_rule
    from cacovid.policy.base import CompressionPolicy

    # Cheap checks come before anything is loaded.
    ratios = check_retentions(ratios)
    if wanted is not None:
        check_names(wanted)
    selection = None if rule is None else selection_rule(rule)
    pool = _pool(actors, max_actors, gpus)
    policies = {label: CompressionPolicy.from_pretrained(folder) for label, folder in folders.items()}
    if overwrite or not RowStore.is_in(out):
        output_folder(out, overwrite)
        RowStore.clear(out)
    RowStore.begin(out)
    (out / SKIPPED).unlink(missing_ok=True)
    skipped = SkippedItems(out / SKIPPED, max_skipped)
    items = evaluation_items(data, split, clips, out, skipped)
    wanted = wanted or _possible_methods(bool(policies), items)
    check_needs(wanted, with_policy=bool(policies), items=items)
    setup = _setup(policies, model, frames, wanted, selection, ratios, seed, cache or out / "cache")
    asked = plan(items, swapped=swapped, timed=TIMED)
    store = RowStore(out, setup.settings(asked))
    with Progress() as progress:
        if store.known:
            progress.console.print(f"going on: {len(store.known)} of {len(items)} questions are measured")
        result = gather(
            _outcomes(setup, unknown(asked, store), pool, address),
            setup.ran(items),
            store=store,
            skipped=skipped,
            progress=partial(progress.show, "evaluating"),
        )
    paths = write_report(result, out)
    print_result(result, progress.console)
    _show_prices(folders, progress.console)
    for path in (*paths.values(), store.path, *([skipped.path] if skipped.skipped else [])):
        progress.console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)


def _show_prices(folders: "Mapping[str, Path]", console: "Console") -> None:
    """What the policies' runs paid, where their folders tell it."""
    from cluster.training.price import price_of_policy

    for label, folder in folders.items():
        price = price_of_policy(folder)
        if price is not None:
            console.print(f"{label}: {price.name} on the run's own clips: {price.value}", highlight=False, markup=False)


def _pool(actors: int, max_actors: int, gpus: float) -> "ActorsConfig":
    from cacovid.config import ActorsConfig

    if not max_actors:
        return ActorsConfig(count=actors, gpus=gpus)
    if actors > max_actors:
        raise UserError(
            f"--actors {actors} exceeds --max-actors {max_actors}: an elastic pool grows from one to the other"
        )
    return ActorsConfig(min=actors, max=max_actors, gpus=gpus)


def _swapped(controls: str) -> bool:
    given = names(controls)
    for name in given:
        if name != "swapped":
            raise UserError(f"unknown control {name!r}: give --controls swapped, or leave it out")
    return bool(given)


def _outcomes(
    setup: "Setup", asked: "Sequence[Asked]", pool: "ActorsConfig", address: str | None
) -> "Iterator[Outcome]":
    """Measured by actors, or in this process."""
    if pool.places:
        from actors.measurer import measure_everywhere
        from cacovid.config import RunConfig
        from cluster.ray_cluster import connected

        with connected(address):
            yield from measure_everywhere(setup, asked, pool, RunConfig().start_timeout_s)
        return
    from cacovid.evaluation.measurer import Measurer

    measurer = Measurer(setup)
    yield from map(measurer.measure, asked)


def _possible_methods(with_policy: bool, items: "Sequence[VideoQuestion]") -> list[str]:
    """Every known method that neither lacks a policy nor evidence."""
    from cacovid.methods.registry import BASELINES, KNOWN, POLICY, UNTRAINED

    impossible = set() if with_policy else {POLICY, UNTRAINED}
    if not all(item.evidence for item in items):
        impossible |= {name for name, method in BASELINES.items() if method.needs_evidence}
    return [name for name in KNOWN if name not in impossible]


def _setup(
    policies: "dict[str, CompressionPolicy]",
    model: str | None,
    frames: int | None,
    wanted: list[str],
    selection: "SelectionConfig | None",
    ratios: list[float],
    seed: int,
    cache: Path,
) -> "Setup":
    """The Video-LLM that the policies were trained with, read as in their training; the embedded one without any."""
    from cacovid.compressor import model_config_for
    from cacovid.config import DataConfig
    from cacovid.evaluation.measurer import Setup
    from cacovid.policy.files import PolicyMetadata

    metadata = [policy.metadata for policy in policies.values()] or [PolicyMetadata(model_path="embedded")]
    if len({(each.num_frames, each.positions, each.instruction) for each in metadata}) > 1:
        raise UserError(
            "the policies were trained with different frame counts, positions or instructions; evaluate them apart"
        )
    config = model_config_for(metadata[0], model, num_frames=frames)
    data = DataConfig(instruction=metadata[0].instruction)
    return Setup(config, data, cache.absolute(), tuple(wanted), policies, selection, tuple(ratios), seed)
