"""The replay buffer across a restart: rollouts are saved, inputs are encoded again.

An item's embeddings are megabytes where its rollouts are kilobytes. The frozen model encodes an item to
the same numbers each time (and mostly from the embedding cache), so a checkpoint leaves them out.
"""

from dataclasses import dataclass

from cacovid.records import Rollout


@dataclass(frozen=True)
class ReplaySnapshot:
    """Rollouts, oldest first, each with the bytes that its whole record counts."""

    entries: tuple[tuple[Rollout, int], ...]

    def item_ids(self) -> tuple[str, ...]:
        """Items whose inputs may be needed, each once, in the order of their first rollout."""
        return tuple(dict.fromkeys(rollout.item_id for rollout, _ in self.entries))
