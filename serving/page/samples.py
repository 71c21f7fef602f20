"""Sample clips for the page: held-out clips of the embedded benchmark, drawn on start."""

import io

from cacovid.answering.prompting import lettered
from cacovid.embedded.clips import draw_clip
from cacovid.embedded.questions import clip_questions
from cacovid.embedded.splits import split_seeds
from cacovid.embedded.video_writer import write_mp4
from serving.page.routes import Sample


def draw_samples(count: int) -> list[Sample]:
    """``count`` held-out clips, the same every time."""
    samples = []
    for place, seed in enumerate(split_seeds("held-out", count) if count else (), start=1):
        clip = draw_clip(seed)
        buffer = io.BytesIO()
        write_mp4(buffer, clip.frames)
        questions = []
        for question in clip_questions(clip, 4):
            options = lettered(question.option_texts())
            questions.append("\n".join([question.text(clip), *options]))
        samples.append(Sample(f"clip {place}", buffer.getvalue(), tuple(questions)))
    return samples
