"""``cacovid refit``: a fresh policy from the answers that a run has kept.

RUN/checkpoints/step-N --restore--> replay buffer --updates--> fresh learners --> RUN/refit
"""

from collections.abc import Callable
from pathlib import Path

from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cluster.ray_cluster import check_resources, connected
from cluster.training.cpo import CPO
from cluster.training.run_directory import RunDirectory


def refit(
    run: RunDirectory,
    config: TrainConfig,
    updates: int,
    report: Callable[[int, float], None],
    *,
    address: str | None = None,
) -> Path:
    """See :meth:`CPO.refit`; the folder of the policy. The run itself stays as it is.

    Args:
        config: The run's, with whatever placement.
        report: Called with the number of finished updates and the loss.
        address: Ray cluster; None starts one on this machine.

    Raises:
        UserError: The run has no checkpoint, keeps no answers or cannot be restored.
    """
    checkpoint = run.newest_checkpoint()
    if checkpoint is None:
        raise UserError(f"{run.folder} has no checkpoint yet: train it first")
    with connected(address):
        check_resources(config, elastic=address not in (None, "local"))
        algorithm = CPO.of_run(config, run.folder)
        try:
            algorithm.restore_from_path(checkpoint)
            policy = algorithm.refit(updates, report)
        finally:
            algorithm.stop()
    policy.save_pretrained(run.refit)
    return run.refit
