"""Parameters, floating-point operations and bytes of models that exist on the ``meta`` device.

Operations are counted by torch itself where a forward pass runs on ``meta`` (language model, policy) and
from the layers' shapes for the vision tower, whose code looks at values. A multiplication and an addition
count as two; attention counts the whole square, also where it is causal.

Shape legend: L prompt columns, N video tokens, Lt text columns, D width, I feed-forward width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cacovid.config import PolicyConfig
from cacovid.planning.backbone import Model, VideoShape
from cacovid.policy.batch import PolicyBatch
from cacovid.policy.build import build_policy
from cacovid.policy.decoder_layer import FirstLayer
from cacovid.records import TokenGrid

PROJECTORS = ("projector", "merger", "connector")


@dataclass(frozen=True)
class PolicyCost:
    """One compression policy for one prompt."""

    parameters: int
    pretrained: int  # of them those of the copied decoder layer
    forward_flops: int  # one prompt
    saved_bytes: int  # activations that one prompt keeps for the backward pass


def parameter_counts(model: Model) -> dict[str, int]:
    """Parameters of vision tower, projector and language model (with its output layer); tied ones once."""
    counts = {"vision tower": 0, "projector": 0, "language model": 0}
    language = {id(weight) for weight in [*model.get_decoder().parameters(), *model.lm_head.parameters()]}
    for name, weight in model.named_parameters():
        if id(weight) in language:
            part = "language model"
        else:
            part = "projector" if any(word in name for word in PROJECTORS) else "vision tower"
        counts[part] += weight.numel()
    return counts


def tower_flops(model: Model, video: VideoShape, grid: TokenGrid) -> int:
    """Operations of vision tower and projector for one clip; attention within each temporal step."""
    patches, projected = video.patches(grid), video.projected(grid)
    per_step = 0
    for name, weight in _tower_weights(model):
        rows = projected if any(word in name for word in PROJECTORS) else patches
        # A merger reads several patches in one row; its input is that much wider, its rows that much fewer.
        per_step += 2 * weight.numel() * rows
    vision = model.config.vision_config
    per_step += int(4 * patches * patches * vision.hidden_size * vision.num_hidden_layers)
    return per_step * grid.frames


def prefill_flops(model: Model, length: int) -> int:
    """Operations of the language model for one prompt of ``length`` columns, logits at the last."""
    decoder = model.get_decoder()
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        hidden = torch.empty(1, length, decoder.config.hidden_size)
        # A 4-D mask is taken as it is; a 2-D one would be looked at, and there are no values on meta.
        mask = torch.empty(1, 1, length, length)
        positions = torch.empty(1, length, dtype=torch.long)
        output = decoder(inputs_embeds=hidden, attention_mask=mask, position_ids=positions, use_cache=False)
        model.lm_head(output.last_hidden_state[:, -1:])
    return int(counter.get_total_flops())


def policy_cost(config: PolicyConfig, model: Model, grid: TokenGrid, text: int, dtype: torch.dtype) -> PolicyCost:
    """What ``config``'s policy with weights of ``dtype`` costs on a prompt of ``grid`` and ``text`` other columns."""
    width = model.get_decoder().config.hidden_size
    with torch.device("meta"):
        layer = FirstLayer.from_language_model(model.get_decoder()) if config.kind == "paper" else None
        policy = build_policy(config, width, layer, seed=0).to(dtype)
        batch = _meta_batch(grid, text, width)
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # alive, so that no two storages share an address

    length = grid.tokens + text

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape[-2:] == (length, length):
            return tensor  # attention weights, which fused attention kernels compute again instead
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
        kept.append(tensor)
        return tensor

    counter = FlopCounterMode(display=False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.device("meta"), counter:
        policy(batch)
    weights = {weight.untyped_storage()._cdata for weight in policy.parameters()}
    return PolicyCost(
        parameters=sum(weight.numel() for weight in policy.parameters()),
        pretrained=sum(weight.numel() for weight in policy.parameter_groups()[1]),
        forward_flops=int(counter.get_total_flops()),
        saved_bytes=sum(size for address, size in sizes.items() if address not in weights),
    )


def layer_bytes(rows: int, width: int, inner: int, item_size: int) -> int:
    """Working memory of one transformer layer at its widest, the feed-forward part: rows x (3 I + 4 D)."""
    return rows * (3 * inner + 4 * width) * item_size


def cache_bytes_per_token(text_config: Model, item_size: int) -> int:
    """Keys and values of one token in every layer."""
    head = text_config.hidden_size // text_config.num_attention_heads
    # Qwen3 states a head width of its own; the others' follows from the width.
    width = text_config.to_dict().get("head_dim") or head
    return int(2 * text_config.num_hidden_layers * text_config.num_key_value_heads * width * item_size)


def _tower_weights(model: Model) -> Iterator[tuple[str, Tensor]]:
    language = {id(module) for module in [*model.get_decoder().modules(), *model.lm_head.modules()]}
    for name, module in model.named_modules():
        if id(module) not in language and isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            yield name, module.weight


def _meta_batch(grid: TokenGrid, text: int, width: int) -> PolicyBatch:
    length = grid.tokens + text
    return PolicyBatch(
        features=torch.empty(1, grid.tokens, width),
        text=torch.empty(1, text, width),
        text_mask=torch.ones(1, text, dtype=torch.bool),
        video_columns=torch.empty(1, grid.tokens, dtype=torch.long),
        text_columns=torch.empty(1, text, dtype=torch.long),
        position_ids=torch.empty(1, 1, length, dtype=torch.long),
        prompt_mask=torch.ones(1, length, dtype=torch.bool, device="cpu"),  # its values decide about a mask
        grid=grid,
    )
