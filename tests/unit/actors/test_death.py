"""What Ray's errors say about the death of an actor. Real deaths: tests/cluster/test_deaths.py."""

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import ActorDiedError, GetTimeoutError, OutOfMemoryError, RayActorError, RayError

from actors.death import death_of
from learner.group import LearnerLost

WORKER = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
GONE = "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the OOM"
NODE = "The actor died because its node has died. Node Id: 4ed9\n\tthe actor's node was "


def died(message: str, *, preempted: bool = False) -> ActorDiedError:
    """Ray's own error, from what its control store says of an actor."""
    context = ActorDiedErrorContext(
        error_message=message, actor_id=b"\0" * 16, class_name="A", pid=7, node_ip_address="10.0.0.3"
    )
    if preempted:
        context.node_death_info.reason = NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED
    return ActorDiedError(context)


@pytest.mark.parametrize(
    ("error", "reason", "text"),
    [
        (died(WORKER + GONE), "killed", "without a word: kill -9, the system out of memory, or a crash (pid 7, ip 10"),
        (died(WORKER + "Worker exits with an exit code 1. The process receives a SIGTERM."), "killed", "SIGTERM"),
        (died(WORKER + "Worker exits unexpectedly. Worker exits with an exit code 3."), "exit", "exit code 3 (pid 7,"),
        (died("The actor is dead because it was killed by `ray.kill`."), "killed", "somebody called ray.kill"),
        (died(NODE + "terminated expectedly: received SIGTERM"), "node_lost", "its node died: terminated expectedly"),
        (died(NODE + "preempted: spot", preempted=True), "preempted", "its node was taken away: preempted: spot"),
        (OutOfMemoryError("Task was killed, node low on memory\nmany lines"), "out_of_memory", "node low on memory"),
        (died(WORKER.replace("SYSTEM_ERROR", "NODE_OUT_OF_MEMORY")), "out_of_memory", "Ray killed it"),
        (RayActorError(actor_init_failed=True, error_msg="The actor ...\nKeyError: 3"), "start", "failed: KeyError: 3"),
        (RayActorError(error_msg=""), "unknown", "Ray does not say why"),
    ],
)
def test_reason_is_what_ray_says(error: RayError, reason: str, text: str) -> None:
    death = death_of(error)
    assert death.reason == reason
    assert text in death.text
    assert "\n" not in death.text


@pytest.mark.parametrize(
    ("cause", "reason"), [(OutOfMemoryError("low memory"), "out_of_memory"), (GetTimeoutError(), "overdue")]
)
def test_learner_that_is_lost_is_told_by_its_cause(cause: RayError, reason: str) -> None:
    with pytest.raises(ray.exceptions.RayActorError) as caught:
        raise LearnerLost("1 of 2 learners have not answered in time") from cause
    assert death_of(caught.value).reason == reason
