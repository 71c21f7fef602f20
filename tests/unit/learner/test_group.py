"""What the learners' group makes of the ends of their calls."""

import time
from typing import NoReturn

import pytest
import ray

from learner.group import DeepSpeedLearnerGroup, LearnerLost


def test_learner_that_ray_killed_for_its_memory_is_a_dead_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's error is none of its RayActorErrors, which alone make a run restart its learners."""

    def killed(calls: object, timeout: float) -> NoReturn:
        raise ray.exceptions.OutOfMemoryError("Task was killed: low memory\nmany lines")

    monkeypatch.setattr(ray, "get", killed)
    group = object.__new__(DeepSpeedLearnerGroup)
    group._is_shut_down = True
    with pytest.raises(LearnerLost, match=r"low memory$"):
        group._wait([], time.monotonic())
    assert issubclass(LearnerLost, ray.exceptions.RayActorError)
