"""What every compression policy offers: logits for tokens and frames, and its files.

Shape legend: B batch, N video tokens, T frames (temporal steps), D width.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from cacovid.config import PolicyConfig, Section, SelectionConfig
from cacovid.errors import UserError
from cacovid.policy.batch import PolicyBatch, collate
from cacovid.policy.decoder_layer import LayerSpec, NonCausalLayer
from cacovid.records import PolicyInput

WEIGHTS = "policy.safetensors"
CARD = "policy.json"


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


class PolicyMetadata(Section):
    """What a saved policy says about where it belongs."""

    model_fingerprint: str = Field("", description="fingerprint of the Video-LLM it was trained with; '' if unknown")
    model_type: str = Field("", description="that model's config.model_type")
    model_path: str = Field("", description="where that model was loaded from")
    trained_steps: int = Field(0, ge=0, description="training steps behind these weights")
    selection: SelectionConfig = Field(SelectionConfig(), description="selection rule to use by default")
    num_frames: int = Field(8, ge=1, description="frames sampled from each video in training")
    positions: Literal["original", "contiguous"] = Field(
        "original", description="position ids that retained tokens had in training"
    )
    instruction: str = Field("", description="line appended to multiple-choice prompts in training")


class PolicyCard(Section):
    """The contents of ``policy.json``."""

    format: Literal[1] = 1
    hidden_size: int
    config: PolicyConfig
    layer: LayerSpec | None = None
    metadata: PolicyMetadata


class CompressionPolicy(nn.Module, ABC):
    """Scores the video tokens of a prompt; ``score = keep - drop``."""

    kind: ClassVar[str]

    def __init__(self, config: PolicyConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.hidden_size = hidden_size
        self.metadata = PolicyMetadata()

    @abstractmethod
    def forward(self, batch: PolicyBatch) -> PolicyOutput:
        """Logits of every token and frame of ``batch``."""

    @abstractmethod
    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(heads, pretrained): the second group learns at ``optimizer.backbone_scale`` of the rate."""

    def layer_spec(self) -> LayerSpec | None:
        """How to rebuild the pretrained layer, for policies that hold one."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters()).device

    @torch.no_grad()
    def evaluate(self, inputs: Sequence[PolicyInput]) -> PolicyOutput:
        """Logits without gradient for inputs of one grid."""
        output = self(collate(inputs).to(self.device))
        assert isinstance(output, PolicyOutput)
        return output

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

    def save_pretrained(self, folder: Path | str, metadata: PolicyMetadata | None = None) -> None:
        """Write ``policy.safetensors`` and ``policy.json`` into ``folder``, each atomically."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        card = PolicyCard(
            hidden_size=self.hidden_size,
            config=self.config,
            layer=self.layer_spec(),
            metadata=metadata or self.metadata,
        )
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.state_dict().items()}
        # Not save_file: its files are their owner's alone, and a service runs under a user of its own.
        (path / f"{WEIGHTS}.part").write_bytes(save(state))
        os.replace(path / f"{WEIGHTS}.part", path / WEIGHTS)
        (path / f"{CARD}.part").write_text(json.dumps(card.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
        os.replace(path / f"{CARD}.part", path / CARD)

    @staticmethod
    def from_pretrained(folder: Path | str, device: torch.device | str = "cpu") -> "CompressionPolicy":
        """The policy saved in ``folder``, in evaluation mode.

        Raises UserError when a file is missing, damaged or holds other parameters than its card says.
        """
        from cacovid.policy.build import empty_policy

        path = Path(folder)
        card = _read_card(path)
        state = _read_weights(path)
        with torch.random.fork_rng(devices=[]):  # weights drawn here are overwritten at once
            layer = None if card.layer is None else NonCausalLayer.from_spec(card.layer)
            policy = empty_policy(card.config, card.hidden_size, layer)
        try:
            policy.load_state_dict(state, strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path / WEIGHTS} does not fit {CARD}: {reason}; save the policy again") from error
        policy.metadata = card.metadata
        return policy.to(device).eval()


def _read_card(path: Path) -> PolicyCard:
    try:
        content: Any = json.loads((path / CARD).read_text(encoding="utf-8"))
        return PolicyCard.model_validate(content)
    except FileNotFoundError as error:
        raise UserError(f"{path} holds no {CARD}: give the 'policy' folder of a training run") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path / CARD} is no JSON ({error}): save the policy again") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path / CARD}: {where}: {first['msg']}: save the policy again with this version") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path / WEIGHTS)
    except FileNotFoundError as error:
        raise UserError(f"{path} holds no {WEIGHTS}: give the 'policy' folder of a training run") from error
    except SafetensorError as error:
        raise UserError(f"{path / WEIGHTS} cannot be read ({error}): copy it again") from error
