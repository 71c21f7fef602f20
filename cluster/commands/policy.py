"""``cacovid policy``: policies made elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.shared import output_folder

REFERENCE_FRAMES = 32  # the paper's setting

app = typer.Typer(help="Bring policies from elsewhere into our format.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps ``import`` a command of its own name while it is the only one."""


@app.command("import")
def import_(
    checkpoint: Annotated[
        Path, typer.Argument(help="the reference's checkpoint: its folder, a safetensors or torch file, or an index")
    ],
    model: Annotated[str, typer.Option(help="the Video-LLM it was trained with: a folder or a hub id")],
    out: Annotated[Path, typer.Option(help="policy folder to write")],
    frames: Annotated[int, typer.Option(min=1, help="frames a video to use by default")] = REFERENCE_FRAMES,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the policy that lies in --out")] = False,
) -> None:
    """Convert the policy weights that the paper's reference implementation published."""
    output_folder(out, overwrite)
    from cacovid.config import ModelConfig
    from cacovid.models.loading import load_video_llm
    from cacovid.policy.reference_import import IGNORED, PREFIX, import_reference, read_reference, reference_metadata

    weights = read_reference(checkpoint)
    # Only shapes, configuration and fingerprint are wanted: half the memory gives the same.
    video_llm = load_video_llm(ModelConfig(path=model, num_frames=frames, device="cpu", dtype="bfloat16"))
    policy = import_reference(weights, video_llm, reference_metadata(video_llm, frames))
    policy.save_pretrained(out)
    parameters = sum(weight.numel() for weight in policy.parameters())
    typer.echo(f"imported {len(weights.state)} tensors ({parameters:,} parameters) for {model}: {out}")
    typer.echo("its layer attends causally, as it did in training: it sees no question that follows the video")
    if weights.ignored:
        typer.echo(f"ignored {len(weights.ignored)} tensors of {IGNORED}* (a head that no loss trained)")
    if weights.others:
        typer.echo(f"left out {weights.others} tensors outside {PREFIX}* (the Video-LLM itself)")
