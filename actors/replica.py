"""What a pool asks of every actor that holds a replica, beside its tasks."""

import traceback
from abc import ABC, abstractmethod
from pathlib import Path

import ray


class ReplicaActor(ABC):
    """Nothing is loaded before :meth:`load`: a constructor that fails would end the actor and lose the reason.

    Attributes:
        first_video: That the driver sees, and every actor must see; None: the driver sees none itself.
    """

    first_video: str | None = None

    def node_id(self) -> str:
        """The node that this actor runs on."""
        return str(ray.get_runtime_context().get_node_id())

    def load(self) -> str | None:
        """Load the replica; returns why not where that fails (an exception would end the actor)."""
        video = self.first_video
        if video is not None and not Path(video).exists():
            return (
                f"{video} is not there on node {ray.util.get_node_ip_address()}: put the questions' videos where every "
                "node sees them"
            )
        try:
            self._load()
        except Exception:  # noqa: BLE001 - see above; the driver decides
            return traceback.format_exc()
        return None

    @abstractmethod
    def _load(self) -> object:
        """Load it, unless that is done."""
