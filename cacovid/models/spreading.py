"""A Video-LLM that is too large for one GPU, spread over several of one node.

    device 0: vision tower, projector, embeddings, layers | device 1: layers | ... | last device: layers, norm, head

Inputs are made on the first device, hidden states travel from layer to layer (accelerate's hooks move them), and logits
come back to the first device. The devices work one after the other: this buys memory, not speed.
"""

from typing import Any

from torch import nn

Model = Any  # a transformers model: the library ships no types


def device_map(model: Model, count: int) -> dict[str, int]:
    """The device (from 0) of every module or loose parameter, as transformers' ``device_map`` takes it.

    Decoder layers lie on the devices in order, so that each device holds about equally many parameters.

    Args:
        model: On any device, ``meta`` for one.
        count: Devices.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    layers: nn.ModuleList = decoder.layers
    # A head that shares its weight with the embeddings stays with them.
    tied = head.weight is model.get_input_embeddings().weight
    ends = [decoder.norm] if tied else [decoder.norm, head]
    sizes = [_size(layer) for layer in layers]
    last = sum(map(_size, ends))
    first = _size(model) - sum(sizes) - last
    found: dict[str, int] = {}

    def walk(name: str, module: nn.Module) -> None:
        below = f"{name}." if name else ""
        if module is layers:
            found.update(
                {f"{below}{index}": device for index, device in enumerate(_balanced(first, sizes, last, count))}
            )
        elif any(each is layers for each in module.modules()):
            found.update({below + own: 0 for own, _ in module.named_parameters(recurse=False)})
            for own, child in module.named_children():
                walk(below + own, child)
        else:
            found[name] = count - 1 if any(module is end for end in ends) else 0

    walk("", model)
    return found


def parameters_by_device(model: Model, places: dict[str, int]) -> list[int]:
    """Parameters on each device of ``places``; tied ones count once."""
    counts = [0] * (max(places.values()) + 1)
    for name, weight in model.named_parameters():
        owner = name
        while owner not in places:
            owner = owner.rpartition(".")[0]
        counts[places[owner]] += weight.numel()
    return counts


def _balanced(first: int, layers: list[int], last: int, count: int) -> list[int]:
    """The device of each layer, where the first device also holds ``first`` and the last one ``last``."""
    used, left, device = first, first + sum(layers) + last, 0
    found = []
    for size in layers:
        # Half a layer over the even share of what is left is nearer to it than half a layer below.
        while device < count - 1 and used + size / 2 > left / (count - device):
            left, used, device = left - used, 0, device + 1
        used += size
        found.append(device)
    return found


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
