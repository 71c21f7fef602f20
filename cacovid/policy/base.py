"""What every compression policy offers: logits for tokens and frames, and its files.

    PolicyInput ... -> collate -> PolicyBatch -> network (``late`` or ``paper``) -> PolicyOutput
    folder -> ``files``: card and weights -> ``CompressionPolicy.networks[kind]`` -> policy

Shape legend: B batch, N video tokens, T frames (temporal steps), D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from cacovid.config import PolicyConfig
from cacovid.errors import UserError
from cacovid.policy.batch import PolicyBatch, collate
from cacovid.policy.decoder_layer import FirstLayer
from cacovid.policy.files import WEIGHTS, PolicyCard, PolicyMetadata, read_card, read_weights, write_policy
from cacovid.policy_folder import CARD
from cacovid.records import PolicyInput


class PolicyOutput(NamedTuple):
    """Float32 logits, columns drop and keep. A tuple, because ZeRO-3 hooks only see tensors in tuples."""

    token_logits: Tensor  # (B, N, 2)
    frame_logits: Tensor  # (B, T, 2)

    @property
    def token_scores(self) -> Tensor:
        """(B, N) keep minus drop."""
        return self.token_logits[..., 1] - self.token_logits[..., 0]

    @property
    def frame_scores(self) -> Tensor:
        """(B, T) keep minus drop."""
        return self.frame_logits[..., 1] - self.frame_logits[..., 0]


def pool_frames(token_logits: Tensor, frames: int) -> Tensor:
    """(B, T, 2) token logits of each frame averaged with softmax(score) as weights."""
    logits = token_logits.unflatten(1, (frames, -1))  # (B, T, S, 2)
    weights = torch.softmax(logits[..., 1] - logits[..., 0], dim=-1)
    pooled: Tensor = (weights[..., None] * logits).sum(dim=2)
    return pooled


class CompressionPolicy(nn.Module, ABC):
    """Scores the video tokens of a prompt; ``score = keep - drop``.

    Args:
        config: which network and its sizes.
        hidden_size: width D of the language model's embeddings.
        layer: its first decoder layer, for networks that hold one; taken, not copied.
    """

    kind: ClassVar[str]
    takes_chunks: ClassVar[bool] = False  # :meth:`logits_in_chunks` is there
    networks: ClassVar[dict[str, type["CompressionPolicy"]]] = {}  # by kind; a subclass enters itself

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.networks[cls.kind] = cls

    def __init__(self, config: PolicyConfig, hidden_size: int, layer: FirstLayer | None = None) -> None:
        super().__init__()
        self.config = config
        self.hidden_size = hidden_size
        self.layer = layer
        self.metadata = PolicyMetadata()

    @abstractmethod
    def forward(self, batch: PolicyBatch) -> PolicyOutput:
        """Logits of every token and frame of ``batch``."""

    @abstractmethod
    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(heads, pretrained): the second group learns at ``optimizer.backbone_scale`` of the rate."""

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters()).device

    @torch.no_grad()
    def logits(self, inputs: Sequence[PolicyInput]) -> PolicyOutput:
        """Logits without gradient for inputs of one grid."""
        output = self(collate(inputs).to(self.device))
        assert isinstance(output, PolicyOutput)
        return output

    def logits_in_chunks(self, inputs: PolicyInput, steps: int) -> PolicyOutput:
        """:meth:`logits` of one input with the memory of ``steps`` frames; the same but for the last digits.

        Raises:
            UserError: The network reads the whole prompt at once.
        """
        raise UserError(
            f"policy {self.kind!r} reads the whole prompt at once, no chunks of it: leave chunks out, or train 'late'"
        )

    def check_model(self, fingerprint: str, hidden_size: int) -> None:
        """Raise UserError when this policy was trained for another Video-LLM."""
        if hidden_size != self.hidden_size:
            home = self.metadata.model_path or self.metadata.model_type or "unknown"
            raise UserError(
                f"the policy reads embeddings of width {self.hidden_size}, the model's have width {hidden_size}: "
                f"use the model it was trained with ({home})"
            )
        known = self.metadata.model_fingerprint
        if known and fingerprint != known:
            raise UserError(
                f"the policy was trained for the model with fingerprint {known} ({self.metadata.model_path}), "
                f"this model has {fingerprint}: use that model or train a policy for this one"
            )

    def save_pretrained(self, folder: Path | str) -> None:
        """Write ``policy.safetensors`` and ``policy.json`` into ``folder``, each atomically."""
        layer = None if self.layer is None else self.layer.spec
        card = PolicyCard(hidden_size=self.hidden_size, config=self.config, layer=layer, metadata=self.metadata)
        write_policy(Path(folder), card, self.state_dict())

    @staticmethod
    def from_pretrained(folder: Path | str) -> "CompressionPolicy":
        """The policy saved in ``folder``, on the CPU, in evaluation mode.

        Raises UserError when a file is missing, damaged or holds other parameters than its card says.
        """
        path = Path(folder)
        card, state = read_card(path), read_weights(path)
        with torch.random.fork_rng(devices=[]):  # weights drawn here are overwritten at once
            layer = None if card.layer is None else FirstLayer.from_spec(card.layer)
            policy = CompressionPolicy.networks[card.config.kind](card.config, card.hidden_size, layer)
        try:
            policy.load_state_dict(state, strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path / WEIGHTS} does not fit {CARD}: {reason}; save the policy again") from error
        policy.metadata = card.metadata
        return policy.eval()
