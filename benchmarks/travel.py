"""Whether a policy travels: trained on clips of 8 frames, asked about longer ones, and with clutter never seen.

    python -m benchmarks.travel runs/demo [--split held-out] [--clips 40] [--frames 8,16,32,64,128]

The objects of a longer clip are visible no longer than those of one of 8 frames: the evidence is as small, the clip all
the larger. Each question is answered from what the policy keeps, with both kinds of positions, and from all tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import torch
import typer

from benchmarks.table import show
from cacovid.answering.prompting import format_prompt
from cacovid.answering.scoring import score
from cacovid.compressor import Compressor
from cacovid.config import Numbering
from cacovid.embedded.clips import draw_clip
from cacovid.embedded.dataset import question_record
from cacovid.embedded.questions import clip_questions
from cacovid.embedded.rendering import SEEN, UNSEEN, Clutter
from cacovid.embedded.splits import split_seeds
from cacovid.embedded.video_writer import FPS, round_trip
from cacovid.evaluation.awareness import area_under_curve
from cacovid.evaluation.statistics import Tally
from cacovid.methods.selection import select_tokens
from cacovid.models.encoded import Encoded
from cacovid.policy_folder import policy_folder

if TYPE_CHECKING:
    from cacovid.records import VideoQuestion

NUMBERINGS: tuple[Numbering, ...] = get_args(Numbering)
CLUTTERS = {"seen": SEEN, "unseen": UNSEEN}
ALL = "all tokens"


@dataclass
class Found:
    """One length's figures."""

    tokens: int = 0  # N
    auc: Tally = field(default_factory=Tally)
    right: dict[tuple[str, float], Tally] = field(default_factory=dict)  # by kind of positions and retention

    def add(self, name: str, retention: float, right: float, video: str) -> None:
        """Count one answer."""
        self.right.setdefault((name, retention), Tally()).add(right, video)


def asked(
    compressor: Compressor, seeds: Sequence[int], frames: int, clutter: Clutter
) -> "Iterator[tuple[VideoQuestion, Encoded]]":
    """Two questions about each clip, read as from an MP4 file."""
    llm = compressor.video_llm
    for seed in seeds:
        clip = draw_clip(seed, frames, clutter)
        features = llm.watch(round_trip(clip.frames), fps=float(FPS))
        for place, question in enumerate(clip_questions(clip)):
            item = question_record(clip, question, place, f"clip-{seed}")
            yield item, llm.encode(features, format_prompt(item))


def measure(
    compressor: Compressor, seeds: Sequence[int], frames: int, clutter: Clutter, retentions: Sequence[float]
) -> Found:
    """All answers about clips of one length."""
    llm, found = compressor.video_llm, Found()
    for item, encoded in asked(compressor, seeds, frames, clutter):
        found.tokens = encoded.grid.tokens
        output = compressor.policy.logits([encoded.policy_input()])
        scores, frame_scores = output.token_scores[0].float(), output.frame_scores[0].float()
        found.auc.add(area_under_curve(scores[list(item.evidence)], scores[list(item.other_objects)]), item.video)
        everything = score(llm, encoded, item, torch.arange(encoded.grid.tokens)[None])
        found.add(ALL, 1.0, float(everything.reward[0]), item.video)
        for retention in retentions:
            kept = select_tokens(scores, frame_scores, encoded.grid, retention, compressor.selection)
            for numbering in NUMBERINGS:
                llm.config = llm.config.model_copy(update={"positions": numbering})
                reward = score(llm, encoded, item, kept[None]).reward
                found.add(numbering, retention, float(reward[0]), item.video)
    return found


def row(frames: int, found: Found, retentions: Sequence[float]) -> list[str]:
    """The line of one length."""

    def percent(tally: Tally) -> str:
        return f"{100 * (tally.mean() or 0):.0f} ±{100 * tally.stderr():.0f}"

    cells = [percent(found.right[ALL, 1.0])]
    for numbering in NUMBERINGS:
        cells += [percent(found.right[numbering, retention]) for retention in retentions]
    return [f"{frames}", f"{found.tokens}", *cells, f"{found.auc.mean() or 0:.3f}"]


def main(
    policy: Annotated[Path, typer.Argument(help="policy or run folder, trained on embedded clips")],
    split: Annotated[str, typer.Option(help="development or held-out")] = "development",
    clips: Annotated[int, typer.Option(min=1, help="of each length, two questions each")] = 40,
    frames: Annotated[str, typer.Option(help="lengths, at least 8 each")] = "8,16,32,64,128",
    retention: Annotated[str, typer.Option(help="shares of tokens kept")] = "0.05,0.02,0.005",
) -> None:
    """Print one table for the clutter that the model has seen and one for other clutter."""
    compressor = Compressor.from_pretrained(policy_folder(policy))
    lengths = [int(each) for each in frames.split(",")]
    retentions = [float(each) for each in retention.split(",")]
    seeds = split_seeds(split, clips)
    columns = [f"{numbering} {100 * share:g} %" for numbering in NUMBERINGS for share in retentions]
    for name, clutter in CLUTTERS.items():
        rows = [row(length, measure(compressor, seeds, length, clutter, retentions), retentions) for length in lengths]
        title = f"{name} clutter: accuracy in % on {2 * clips} questions a row, {split} clips from seed {seeds[0]} on"
        show(title, ("frames", "tokens", ALL, *columns, "AUC"), rows)


if __name__ == "__main__":
    typer.run(main)
