"""The compression policy as an RLModule, so that RLlib's tools find it where they look for modules."""

from typing import Any

from ray.rllib.core.rl_module.torch import TorchRLModule

from cacovid.policy.base import CompressionPolicy
from cacovid.policy.batch import collate


class CompressionModule(TorchRLModule):  # type: ignore[misc]
    """Wraps a :class:`CompressionPolicy`, which the learner attaches once it has its weights."""

    def setup(self) -> None:
        """The policy arrives by :meth:`attach`: its weights come from the Video-LLM, not from spaces."""
        self.policy: CompressionPolicy | None = None

    def attach(self, policy: CompressionPolicy) -> None:
        """Hold ``policy`` as this module's network."""
        self.policy = policy

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
        """Token and frame logits of ``batch["inputs"]``, a list of policy inputs of one grid."""
        assert self.policy is not None, "attach a policy first"
        output = self.policy(collate(batch["inputs"]))
        return {"token_logits": output.token_logits, "frame_logits": output.frame_logits}
