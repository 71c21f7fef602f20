"""A table of questions as a task of lmms-eval, so that any of its models answers the same questions.

write_task(Path("clips/questions.parquet"), Path("tasks"))
lmms-eval --include_path tasks --tasks cacovid_table --model ...
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cacovid.answering.prompting import format_prompt
from cacovid.answering.reward import final_answer, reward
from cacovid.atomic import writing
from cacovid.records import VideoQuestion

METRIC = "accuracy"
_FUNCTIONS = '''"""What lmms-eval calls for the task beside this file."""

from cacovid.harness.task import TableTask

_TASK = TableTask({folder!r}, {instruction!r})
video, text, messages, results = _TASK.video, _TASK.text, _TASK.messages, _TASK.results
'''


def write_task(
    table: Path, folder: Path, *, name: str = "cacovid_table", instruction: str = "", max_new_tokens: int = 32
) -> Path:
    """Write NAME.yaml and its functions into ``folder``, and return the YAML file.

    Args:
        instruction: line appended to multiple-choice prompts, as ``data.instruction`` in training.
    """
    functions = f"{name}_functions"
    lines = [
        yaml.safe_dump(
            {
                "task": name,
                "dataset_path": "parquet",
                "dataset_kwargs": {"data_files": {"test": str(table.absolute())}},
                "test_split": "test",
                "output_type": "generate_until",
                "doc_to_target": "answer",
                "generation_kwargs": {"max_new_tokens": max_new_tokens, "do_sample": False},
                "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
            },
            sort_keys=False,
        ),
        f"doc_to_visual: !function {functions}.video",
        f"doc_to_text: !function {functions}.text",
        f"doc_to_messages: !function {functions}.messages",
        f"process_results: !function {functions}.results",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder / f"{functions}.py") as part:
        part.write_text(_FUNCTIONS.format(folder=str(table.absolute().parent), instruction=instruction))
    with writing(folder / f"{name}.yaml") as part:
        part.write_text("\n".join(lines) + "\n")
    return folder / f"{name}.yaml"


class TableTask:
    """How a row of a table is shown and judged.

    Args:
        folder: that relative videos are in.
        instruction: line appended to multiple-choice prompts.
    """

    def __init__(self, folder: str, instruction: str) -> None:
        self._folder = Path(folder)
        self._instruction = instruction

    def video(self, row: Mapping[str, Any]) -> list[str]:
        """The row's video file: all that lmms-eval's models without a chat take, whatever segment is asked about."""
        return [str(self._folder / row["video"])]

    def text(self, row: Mapping[str, Any], **_: object) -> str:
        """The prompt, as our own evaluation shows it."""
        return format_prompt(_question(row), self._instruction)

    def messages(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The chat, with the segment that the row asks about."""
        times = {"start_time": row.get("start"), "end_time": row.get("end")}  # optional columns
        video = {"type": "video", "url": self.video(row)[0], **times}
        return [{"role": "user", "content": [video, {"type": "text", "text": self.text(row)}]}]

    def results(self, row: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
        """What the answer is worth: 0 or 1 for multiple choice, else our own reward."""
        item, text = _question(row), str(answers[0])
        if item.problem_type != "multiple choice":
            return {METRIC: reward(item.problem_type, text, item.answer)}
        return {METRIC: float(final_answer(text)[:1].upper() == item.answer and not final_answer(text)[1:2].isalnum())}


def _question(row: Mapping[str, Any]) -> VideoQuestion:
    return VideoQuestion(
        row["id"],
        row["video"],
        row["question"],
        tuple(row["options"] or ()),
        row["answer"],
        row["problem_type"],
        row["source"],
    )
