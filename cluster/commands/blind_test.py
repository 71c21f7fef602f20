"""``cacovid data blind-test``: drop the questions that need no video."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cacovid.errors import UserError
from cluster.commands.progress import Progress
from cluster.commands.shared import free

if TYPE_CHECKING:
    from cacovid.config import ActorsConfig, ModelConfig
    from cacovid.evaluation.blind import BlindAnswer
    from cacovid.records import VideoQuestion


def blind_test(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Parquet table of questions")],
    out: Annotated[Path, typer.Option(help="Parquet table of the questions that need the video")],
    model: Annotated[str, typer.Option(help="'embedded', a folder or a hub id")] = "embedded",
    instruction: Annotated[str, typer.Option(help="line appended to multiple-choice prompts")] = "",
    right_from: Annotated[float, typer.Option(min=0, max=1, help="reward from which an answer counts as right")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer that is not multiple choice")] = 32,
    actors: Annotated[int, typer.Option(min=0, help="Ray actors that ask; 0 asks in this process")] = 0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of one actor")] = 0.0,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; without it one is started here")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the output table, begin anew")] = False,
) -> None:
    """Drop questions that the model answers right without the video (the paper's blind test); again: it goes on."""
    free(out, overwrite)
    from cacovid.config import ActorsConfig, ModelConfig
    from cacovid.data.content import content_key
    from cacovid.data.skipped import SkippedItems
    from cacovid.data.table import count_rows, stream_questions, write_questions
    from cacovid.evaluation.blind import BlindAnswers

    rows, aside = count_rows(table), SkippedItems(None)
    asking = ModelConfig(path=model, max_new_tokens=max_new_tokens)
    settings: dict[str, str | int] = {"table": content_key(table), "model": model, "instruction": instruction}
    settings["max_new_tokens"] = max_new_tokens
    log = out.with_name(f"{out.name.removesuffix('.parquet')}.answers.jsonl")
    if overwrite:
        log.unlink(missing_ok=True)
    answers = BlindAnswers(log, settings)
    unknown = (item for item in stream_questions(table, skipped=aside) if item.id not in answers.known)
    with Progress() as progress:
        for part in _asked(unknown, asking, instruction, ActorsConfig(count=actors, gpus=gpus), address):
            answers.add(part)
            progress.show("asking", len(answers.known) + aside.skipped, rows)
    rewards = {answer.id: answer.reward for answer in answers.known.values() if answer.reward is not None}
    needed = {id for id, reward in rewards.items() if reward < right_from}
    if not needed:
        raise UserError(f"of {rows} rows {len(rewards)} are answered, all right without a video: nothing to train on")
    write_questions(out, (item for item in stream_questions(table, skipped=SkippedItems(None)) if item.id in needed))
    guessed, unusable = len(rewards) - len(needed), rows - len(rewards)
    progress.console.print(
        f"{guessed} questions ({100 * guessed / len(rewards):.1f} %) answered right without the video were dropped, "
        f"{unusable} were unusable, {len(needed)} remain",
        highlight=False,
    )
    for written in (out, log):
        progress.console.print(f"wrote {written}", highlight=False, markup=False, soft_wrap=True)


def _asked(
    items: "Iterable[VideoQuestion]",
    model: "ModelConfig",
    instruction: str,
    config: "ActorsConfig",
    address: str | None,
) -> "Iterator[list[BlindAnswer]]":
    """Answers as they come: from actors, or from this process."""
    if config.count:
        from actors.blind import ask_everywhere
        from cluster.ray_cluster import connected

        with connected(address):
            yield from ask_everywhere(items, model, instruction, config)
        return
    from cacovid.evaluation.blind import ask
    from cacovid.models.loading import load_video_llm

    video_llm = load_video_llm(model)
    for item in items:
        yield ask(video_llm, [item], instruction)
