"""The blind test by Ray actors: each holds a frozen Video-LLM and takes a few questions at a time."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import ray
import torch
from ray.util import ActorPool

from cacovid.config import ActorsConfig, ModelConfig
from cacovid.errors import UserError
from cacovid.evaluation.blind import BlindAnswer, ask
from cacovid.models.adapter import VideoLLM
from cacovid.models.loading import load_video_llm
from cacovid.records import VideoQuestion

QUESTIONS = 16  # given to an actor at once


class BlindActor:
    """Loads its model with the first questions: a constructor that fails would lose the reason."""

    def __init__(self, model: ModelConfig, instruction: str, threads: int) -> None:
        self.model = model
        self.instruction = instruction
        self._video_llm: VideoLLM | None = None
        torch.set_num_threads(threads)

    def ask(self, items: Sequence[VideoQuestion]) -> list[BlindAnswer]:
        """Ask each question without its video."""
        if self._video_llm is None:
            self._video_llm = load_video_llm(self.model)
        return ask(self._video_llm, items, self.instruction)


def ask_everywhere(
    items: Iterable[VideoQuestion], model: ModelConfig, instruction: str, config: ActorsConfig
) -> Iterator[list[BlindAnswer]]:
    """The answers to ``items``, taken as actors are free, in the order in which they come.

    An actor that dies is started again and its questions are asked again.

    Raises:
        UserError: The model cannot be loaded, or the same questions have ended an actor ``max_retries`` times.
    """
    remote = ray.remote(BlindActor).options(
        num_cpus=config.cpus, num_gpus=config.gpus, max_restarts=-1, max_task_retries=config.max_retries
    )
    actors = [remote.remote(model, instruction, config.threads) for _ in range(config.count)]
    pool, queue = ActorPool(actors), iter(items)
    try:
        while True:
            if pool.has_free() and (part := list(islice(queue, QUESTIONS))):
                pool.submit(lambda actor, part: actor.ask.remote(part), part)
            elif pool.has_next():
                yield pool.get_next_unordered()
            else:
                return
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise UserError(f"an actor of the blind test ended again and again ({str(error).splitlines()[0]})") from error
    finally:
        for actor in actors:
            ray.kill(actor)
