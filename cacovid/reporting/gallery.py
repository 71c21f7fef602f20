"""Questions as a policy answers them, with pictures of what it kept: where it is right, and where it is wrong."""

from collections.abc import Callable, Sequence

from PIL.Image import Image

from cacovid.answering.prompting import lettered, spoken
from cacovid.answering.scoring import score
from cacovid.compressor import CompressedVideo, Compressor
from cacovid.data.video import read_frames
from cacovid.errors import BadItem, UserError
from cacovid.records import VideoQuestion
from cacovid.reporting.records import Answered, Gallery

RIGHT = 0.5  # a graded reward from here on counts as right
WORST = 10  # listed

Progress = Callable[[int, int], None]  # questions done, questions in all


def look_at(
    compressor: Compressor,
    items: Sequence[VideoQuestion],
    retention: float,
    *,
    policy: str,
    most: int,
    pictures: int,
    progress: Progress | None = None,
) -> Gallery:
    """Answer ``most`` of ``items``, evenly chosen, and draw the first ``pictures`` right and wrong ones.

    Args:
        policy: how the report calls it.

    Raises:
        UserError: None of them can be used, or a ratio outside (0, 1].
    """
    chosen = [items[place * len(items) // most] for place in range(most)] if most < len(items) else list(items)
    right: list[Answered] = []
    wrong: list[Answered] = []
    worst: list[Answered] = []
    skipped = 0
    for done, item in enumerate(chosen, start=1):
        try:
            answered = _answered(compressor, item, retention, (len(right) < pictures, len(wrong) < pictures))
        except BadItem:
            skipped += 1
        else:
            drawn = right if answered.right else wrong
            if answered.pictures:
                drawn.append(answered)
            if answered.full_right and not answered.right:
                worst.append(answered)
        if progress is not None:
            progress(done, len(chosen))
    if skipped == len(chosen):
        raise UserError(f"none of {len(chosen)} questions of the gallery can be used: check the table's videos")
    worst.sort(key=lambda each: each.likelihood)
    return Gallery(policy, retention, len(chosen) - skipped, right, wrong, worst[:WORST], skipped)


def _answered(compressor: Compressor, item: VideoQuestion, retention: float, wanted: tuple[bool, bool]) -> Answered:
    """``wanted``: whether pictures are drawn if the answer is right, and if it is wrong."""
    frames = compressor.video_llm.config.num_frames
    video = read_frames(item.video, frames, start=item.start, end=item.end)
    clip = compressor(video, item.question, retention, options=item.options)
    device = clip.video_llm.device
    scored = score(clip.video_llm, clip.encoded, item, clip.kept[None].to(device))
    whole = score(clip.video_llm, clip.encoded, item, clip.whole[None].to(device))
    right = bool(scored.reward[0] >= RIGHT)
    options = tuple(lettered(item.options)) if item.options else ()
    return Answered(
        id=item.id,
        question=item.question,
        options=options,
        expected=spoken(options, item.answer),
        compressed=spoken(options, scored.answers[0]),
        full=spoken(options, whole.answers[0]),
        right=right,
        full_right=bool(whole.reward[0] >= RIGHT),
        likelihood=float(scored.likelihood[0]),
        kept=len(clip.kept),
        tokens=clip.encoded.grid.tokens,
        pictures=_pictures(clip) if wanted[0 if right else 1] else {},
    )


def _pictures(clip: CompressedVideo) -> dict[str, Image]:
    scores = clip.draw_scores()
    return {
        "kept tokens": clip.draw(),
        "frame scores along time": scores["frame-scores"],
        "token scores": scores["token-scores"],
    }
