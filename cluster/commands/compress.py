"""``cacovid compress``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cacovid.policy_folder import policy_folder
from cluster.commands.shared import Frames, Model, Rule, free, output_folder

if TYPE_CHECKING:
    from rich.table import Table

    from cacovid.compressor import CompressedVideo


def compress(
    video: Annotated[Path, typer.Argument(help="any video file")],
    question: Annotated[str, typer.Option(help="what to ask, without options")],
    policy: Annotated[Path, typer.Option(help="policy or run folder")],
    retention: Annotated[float, typer.Option(help="share of video tokens to keep, in (0, 1]")] = 0.1,
    option: Annotated[list[str] | None, typer.Option(help="an option's text, repeatable: multiple choice")] = None,
    model: Model = None,
    frames: Frames = None,
    chunk_frames: Annotated[
        int | None, typer.Option(min=1, help="a long video: read so many frames at a time; no answer from all tokens")
    ] = None,
    rule: Rule = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer without options")] = 64,
    out: Annotated[Path, typer.Option(help="picture of the kept tokens (PNG)")] = Path("compressed.png"),
    figures: Annotated[
        Path | None, typer.Option(help="folder for two more: frame scores along time, and token scores as a heat map")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace pictures that exist")] = False,
) -> None:
    """Answer a question from the compressed and from all video tokens, and draw what was kept."""
    from rich.console import Console

    from cacovid.answering.prompting import lettered, spoken
    from cacovid.compressor import Compressor
    from cacovid.drawing.sheet import save_image
    from cacovid.errors import UserError
    from cacovid.methods.selection import selection_rule

    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out} is no PNG file: give a name that ends in .png")
    free(out, overwrite)
    if figures is not None:
        output_folder(figures, overwrite)
    selection = None if rule is None else selection_rule(rule)
    compressor = Compressor.from_pretrained(policy_folder(policy), model, selection=selection)
    clip = first = compressor(
        video, question, retention, options=option or (), num_frames=frames, chunk_frames=chunk_frames
    )
    if chunk_frames is None:
        clip = compressor(first.video, question, retention, options=option or ())  # again, now that all is warm
    options = lettered(clip.options)
    answers = [
        spoken(options, clip.answer(all_tokens=whole, max_new_tokens=max_new_tokens))
        for whole in ((False, True) if chunk_frames is None else (False,))
    ]
    kept, total = len(clip.kept), clip.encoded.grid.tokens
    lines = [
        " ".join([question, *options]),
        f"{kept} of {total} video tokens kept ({100 * kept / total:.1f} %). Answer from these: {answers[0]}."
        + "".join(f" From all: {answer}." for answer in answers[1:]),
    ]
    save_image(clip.draw(lines), out)
    paths = [out]
    if figures is not None:
        for name, picture in clip.draw_scores(lines[0]).items():
            paths.append(figures / f"{name}.png")
            save_image(picture, paths[-1])
    console = Console()
    console.print(_table(clip, answers, first.timings.decode))
    for path in paths:
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)


def _table(clip: "CompressedVideo", answers: list[str], decode_s: float) -> "Table":
    """Side by side with all tokens, where these were answered from as well."""
    from rich.markup import escape
    from rich.table import Table

    grid, timings, all_too = clip.encoded.grid, clip.timings, len(answers) > 1
    table = Table(title=escape(clip.question))
    for name in ("", "compressed", "all tokens"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("answer", *(escape(answer) for answer in answers))
    table.add_row("video tokens", f"{len(clip.kept)} ({100 * len(clip.kept) / grid.tokens:.1f} %)", str(grid.tokens))
    table.add_row("prompt tokens", *(str(clip.prompt_tokens(all_tokens=whole)) for whole in (False, True)))
    if all_too:
        table.add_row("prefill", *(f"{1000 * seconds:.1f} ms" for seconds in clip.prefill_seconds()))
    table.add_row("policy", f"{1000 * timings.policy:.1f} ms", "-")
    table.add_row("encode" if all_too else "decode, encode", *[f"{1000 * timings.encode:.1f} ms"] * (1 + all_too))
    if all_too:
        table.add_row("decode (once, cold)", *[f"{1000 * decode_s:.1f} ms"] * 2)
    table.add_row("frames x rows x columns", f"{grid.frames} x {grid.rows} x {grid.columns}", "")
    return table
