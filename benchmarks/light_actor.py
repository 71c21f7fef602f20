"""A rollout actor's process without a model: it sleeps. It imports no torch, so that 64 of them fit a small machine."""

import time
from typing import Any

import ray


class LightActor:
    """Answers the pool's calls; a task takes the seconds that come with it.

    Args:
        answers: A pickled result for each part of an item, which a process without torch cannot make.
    """

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = answers
        self._weights = ""  # id of those fetched last

    def node_id(self) -> str:
        """The node that this actor runs on."""
        return str(ray.get_runtime_context().get_node_id())

    def load(self) -> None:
        """Nothing to load."""

    def sample_apart(
        self, task: bytes, part: int, weights: tuple[str, list[Any]], seconds: float
    ) -> tuple[tuple[float, float, bytes], bytes]:
        """Take ``seconds`` for a task.

        Args:
            task: The pickled task, which stays so.
            part: Its part of an item.
            weights: Their id and, in a list, which Ray does not resolve, their reference.

        Returns:
            time.monotonic() of the begin and the end with the result; and a stand-in for the item's input.
        """
        begin = time.monotonic()
        if weights[0] != self._weights:
            self._weights = weights[0]
            ray.get(weights[1][0])
        time.sleep(max(0.0, begin + seconds - time.monotonic()))
        return (begin, time.monotonic(), self._answers[part]), b"an input"
