"""``cacovid evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.shared import labelled_policies, names, numbers

RETENTIONS = "1,0.25,0.2,0.15,0.1,0.05,0.02"


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
    model: Annotated[
        str | None, typer.Option(help="'embedded', a folder or a hub id; without it the policy's model")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="frames a video; without it as in the policy's training")] = None,
    rule: Annotated[
        str | None, typer.Option(help="global, half-uniform or frame-budgets; without it each policy's own")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of random methods and the untrained policy")] = 0,
    max_skipped: Annotated[float, typer.Option(min=0, max=1, help="stop when a larger share is unusable")] = 0.2,
    out: Annotated[Path, typer.Option(help="folder of results.json, results.md, results.png")] = Path(
        "runs/evaluation"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the reports that lie in --out")] = False,
) -> None:
    """Accuracy, evidence recall and question-awareness of selection methods at equal token budgets."""
    ratios = numbers(retention, "--retention")
    policies = labelled_policies(policy or [])
    from cluster.commands.evaluation import EvaluationRequest, run_evaluation

    run_evaluation(
        EvaluationRequest(
            policies=policies,
            retentions=tuple(ratios),
            methods=None if methods is None else tuple(names(methods)),
            data=data,
            clips=clips,
            split=split,
            model=model,
            frames=frames,
            rule=rule,
            seed=seed,
            max_skipped=max_skipped,
            out=out,
            overwrite=overwrite,
        )
    )
