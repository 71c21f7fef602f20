"""``cacovid demo``: the main job on the embedded default, from nothing to pictures."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands import evaluate, train

PICTURES = 4
RETENTION = 0.05
EVALUATED_EVERY = 4  # training steps: what the run costs is told as fine as that
METHODS = "policy,untrained,divprune,text-cosine,uniform,random,oracle"  # `cacovid evaluate` has all; they take longer


def demo(out: Annotated[Path, typer.Option(help="folder of the new run")] = Path("runs/demo")) -> None:
    """Train the default policy, evaluate it on held-out clips, draw what it keeps; all on this machine."""
    train.train(overrides=[f"evaluation.every={EVALUATED_EVERY}"], out=str(out))
    evaluate.evaluate(policy=[str(out)], methods=METHODS, out=out, overwrite=True)
    for path in _draw(out):
        typer.echo(f"drew {path}")
    typer.echo(f"everything is in {out}: the policy in {out / 'policy'}, the figures in {out / 'results.json'}")


def _draw(out: Path) -> list[Path]:
    """Kept tokens of a few held-out questions, two on each clip, so that one sees the question matter."""
    from cacovid.answering.prompting import option_letters
    from cacovid.compressor import Compressor
    from cacovid.embedded.dataset import write_dataset
    from cacovid.embedded.splits import split_seeds

    folder = out / "pictures"
    items = write_dataset(folder / "clips", split_seeds("held-out", PICTURES // 2))
    compressor = Compressor.from_pretrained(out / "policy")
    paths = []
    for number, item in enumerate(items, start=1):
        clip = compressor(folder / "clips" / item.video, item.question, options=item.options, retention=RETENTION)
        answer = item.options[option_letters(len(item.options)).index(clip.answer())]
        line = f"{item.question}  {len(clip.kept)} of {clip.encoded.grid.tokens} tokens kept: {answer}"
        paths.append(folder / f"kept-{number}.png")
        clip.draw([line]).save(paths[-1])
    return paths
