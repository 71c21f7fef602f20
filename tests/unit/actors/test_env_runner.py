"""The rollout actor by itself."""

from actors.env_runner import RolloutEnvRunner
from cluster.training.cpo import CPOConfig


def test_videos_that_a_node_does_not_see_are_told_before_anything_is_loaded() -> None:
    """Once, at the start: else every item of the run would be set aside."""
    config = CPOConfig()
    config.first_video = "/nowhere/clip.mp4"
    runner = RolloutEnvRunner(config=config, worker_index=1)
    assert "/nowhere/clip.mp4 is not there on node" in (runner.load() or "")
    assert runner._reader is None
