"""Where DeepSpeed keeps the float32 weights that a learner's optimiser updates, by parameter name.

                 master tensors                                             this learner holds
stage 0, fp32    the parameters themselves                                  all
stage 0, bf16    a float32 copy of each                                     all
stage 1, 2       one flat tensor a parameter group                          an interval of the group
stage 3          one flat tensor a sub-group                                an interval of every parameter

torch's AdamW keeps its moments by master tensor, in its shape. (Source: DeepSpeed 0.19's ``runtime/zero`` and
``runtime/fp16/unfused_optimizer.py``.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Fragment:
    """Elements ``start`` to ``start + count`` of the flattened parameter ``name``.

    Attributes:
        master: The tensor that the optimiser updates; the elements stand in its flattened form from ``place`` on.
    """

    name: str
    start: int
    count: int
    master: Tensor
    place: int

    def of(self, like_master: Tensor) -> Tensor:
        """The view of these elements in a tensor of the master's shape: itself, or one of its moments."""
        return like_master.detach().view(-1).narrow(0, self.place, self.count)


def base_optimizer(optimizer: Any) -> Optimizer:  # noqa: ANN401 - DeepSpeed is untyped
    """torch's optimiser inside DeepSpeed's."""
    found = optimizer if isinstance(optimizer, Optimizer) else optimizer.optimizer
    assert isinstance(found, Optimizer)
    return found


def fragments(policy: nn.Module, optimizer: Any, zero_stage: int, rank: int) -> list[Fragment]:  # noqa: ANN401
    """What this learner holds, in the policy's order."""
    named = dict(policy.named_parameters())
    if zero_stage == 3:
        return [each for name, parameter in named.items() for each in _partition(name, parameter, optimizer, rank)]
    if zero_stage:
        return [each for name, parameter in named.items() for each in _interval(name, parameter, optimizer)]
    masters = {id(parameter): parameter for parameter in named.values()}
    if not isinstance(optimizer, Optimizer):
        pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        masters = {id(low): high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}
    return [Fragment(name, 0, each.numel(), masters[id(each)], 0) for name, each in named.items()]


def elements(parameter: Any, zero_stage: int) -> int:  # noqa: ANN401 - DeepSpeed adds attributes
    """How many a parameter has as a whole; at stage 3 the parameter itself is empty."""
    return int(parameter.ds_numel if zero_stage == 3 else parameter.numel())


def _interval(name: str, parameter: Any, optimizer: Any) -> Iterator[Fragment]:  # noqa: ANN401
    mapping = parameter._hp_mapping
    if mapping is not None:  # None: other learners hold all of it
        here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
        master = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        yield Fragment(name, here.start, here.numel, master, there.start)


def _partition(name: str, parameter: Any, optimizer: Any, rank: int) -> Iterator[Fragment]:  # noqa: ANN401
    group, place, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = rank * size
    count = min(size, parameter.ds_numel - start)
    if count > 0:
        yield Fragment(name, start, count, optimizer.fp32_partitioned_groups_flat[group], place)
