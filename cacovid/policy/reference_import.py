"""The reference's published policy weights as a policy of kind 'paper'.

Its checkpoints are whole LLaVA-OneVision models with the policy below ``compression_policy.``:
``layers.0.*`` (the decoder layer), ``layernorm``, ``token_compress`` and ``frame_compress`` (Linear layers
with SiLU between them). ``mode_selection`` is a third head that no loss of theirs ever trained and that
their inference does not read: it is left out, as in ours. Their layer ran causally in training (see
:class:`~cacovid.policy.paper.PaperPolicy`), so it does here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cacovid.config import PolicyConfig, SelectionConfig
from cacovid.errors import UserError
from cacovid.models.adapter import VideoLLM
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.build import build_policy
from cacovid.policy.decoder_layer import FirstLayer
from cacovid.policy.files import PolicyMetadata, read_tensors

PREFIX = "compression_policy."
IGNORED = "mode_selection."
# Ours -> theirs, by the beginning of a parameter's name.
PARTS = {"layer.layer.": "layers.0.", "norm.": "layernorm."}
HEADS = {"token_head.": "token_compress.", "frame_head.": "frame_compress."}
NAMED = 6  # parameters that an error lists


@dataclass(frozen=True)
class ReferenceWeights:
    """What was found in a reference checkpoint."""

    state: dict[str, Tensor]  # below the prefix, without the ignored head
    ignored: tuple[str, ...]  # names of the ignored head's tensors, below the prefix
    others: int  # tensors outside the prefix: the Video-LLM itself


def read_reference(checkpoint: Path) -> ReferenceWeights:
    """The policy's tensors of a reference checkpoint.

    Raises:
        UserError: It cannot be read, or holds nothing below ``compression_policy.``.
    """
    found, others = read_tensors(checkpoint, PREFIX)
    ignored = tuple(sorted(name for name in found if name.startswith(IGNORED)))
    state = {name: tensor for name, tensor in found.items() if name not in ignored}
    if not state:
        raise UserError(
            f"{checkpoint} holds no policy: none of its {others + len(ignored)} tensors has a name that begins with "
            f"{PREFIX!r}; give a checkpoint that the reference's training saved"
        )
    return ReferenceWeights(state, ignored, others)


def import_reference(weights: ReferenceWeights, video_llm: VideoLLM, metadata: PolicyMetadata) -> CompressionPolicy:
    """The reference's policy in float32, in evaluation mode, for the model it was trained with.

    Args:
        weights: From :func:`read_reference`.
        video_llm: That model: it decides the shapes and gives the layer's configuration.
        metadata: What the policy shall say of itself (:func:`reference_metadata`).

    Raises:
        UserError: Parameters are missing, unexpected, of another shape or not of a floating-point type.
    """
    layer = FirstLayer.from_language_model(video_llm.model.get_decoder())
    policy = build_policy(PolicyConfig(kind="paper", attention="causal"), video_llm.hidden_size, layer, seed=0)
    own = policy.state_dict()
    theirs = reference_names(own, weights.state)
    _check_names(theirs.values(), weights.state)
    _check_tensors({name: own[ours] for ours, name in theirs.items()}, weights.state, video_llm)
    policy.load_state_dict({ours: weights.state[name].float() for ours, name in theirs.items()}, strict=True)
    policy.metadata = metadata
    return policy.eval()


def reference_metadata(video_llm: VideoLLM, num_frames: int) -> PolicyMetadata:
    """The reference's own inference setting, for ``video_llm``."""
    return PolicyMetadata(
        model_fingerprint=video_llm.fingerprint,
        model_type=video_llm.kind,
        model_path=video_llm.config.path,
        selection=SelectionConfig(rule="frame-budgets"),
        num_frames=num_frames,
        positions="original",
    )


def reference_names(own: Mapping[str, Tensor], found: Iterable[str]) -> dict[str, str]:
    """Our parameter -> the reference's name for it below the prefix, its heads numbered as in ``found``."""
    names = {ours: f"{PARTS[part]}{ours.removeprefix(part)}" for part in PARTS for ours in own if ours.startswith(part)}
    for part, head in HEADS.items():
        numbers, theirs = _linear_numbers(part, own), _linear_numbers(head, found)
        # Their order is what counts; where there are too few or too many, ours tell which.
        numbering = dict(zip(numbers, theirs if len(theirs) == len(numbers) else numbers, strict=True))
        for ours in own:
            if ours.startswith(part):
                _, number, kind = ours.split(".")
                names[ours] = f"{head}{numbering[int(number)]}.{kind}"
    return names


def _linear_numbers(head: str, names: Iterable[str]) -> list[int]:
    """Places of the Linear layers among the modules of ``head``, in their order."""
    matches = (re.fullmatch(rf"{re.escape(head)}(\d+)\.(?:weight|bias)", name) for name in names)
    return sorted({int(match[1]) for match in matches if match})


def _check_names(expected: Iterable[str], found: Iterable[str]) -> None:
    wanted, there = set(expected), set(found)
    problems = [
        f"{kind}: {_listed(names)}"
        for kind, names in (("missing", wanted - there), ("unexpected", there - wanted))
        if names
    ]
    if problems:
        raise UserError(
            f"the checkpoint's parameters below {PREFIX!r} do not fit the model ({'; '.join(problems)}): "
            "give the model and the checkpoint that belong together"
        )


def _check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], video_llm: VideoLLM) -> None:
    wrong = [
        f"{name} is {_described(found[name])}, needed {_described(tensor)}"
        for name, tensor in expected.items()
        if found[name].shape != tensor.shape or not found[name].is_floating_point()
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(
            f"{wrong[0]}{more}: the checkpoint belongs to another model than {video_llm.config.path!r} "
            f"(embeddings of width {video_llm.hidden_size}), name its own with --model"
        )


def _described(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return "x".join(str(size) for size in tensor.shape) + kind


def _listed(names: set[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return ", ".join(ordered[:NAMED]) + more
