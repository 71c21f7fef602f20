"""What the learners know, by parameter name: written by any number of them at any ZeRO stage, read by any other.

    learners --save() each--> parts (safetensors): float32 weights and moments of what each holds
    parts    --restore: begin(), add(part) for every one, end()--> learners, each keeps what it holds

No learner ever has more than its own state, one part and, at stages 0 to 2, the weights that it has anyway.

A part's tensors are flat and named ``KIND/START/PARAMETER``: elements of the flattened parameter from START on;
``step`` counts the optimiser's steps.
"""

from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from cacovid.errors import UserError
from learner.fragments import Fragment, base_optimizer, elements, fragments

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")  # of torch's AdamW
STEP = "step"


class LearnerState:
    """Saves and restores one learner's share of the policy and its optimiser."""

    def __init__(self, policy: nn.Module, optimizer: Any, zero_stage: int, rank: int, learners: int) -> None:  # noqa: ANN401
        self._policy, self._optimizer, self._stage = policy, optimizer, zero_stage
        self._base = base_optimizer(optimizer)
        self._rank, self._learners = rank, learners
        # While a checkpoint's parts come:
        self._parameters: dict[str, nn.Parameter] = {}
        self._by_name: dict[str, list[Fragment]] = {}  # what this learner holds
        self._covered: dict[tuple[str, str], int] = {}  # elements restored so far, by kind and parameter

    def _held(self) -> list[Fragment]:
        return fragments(self._policy, self._optimizer, self._stage, self._rank)

    def save(self) -> bytes:
        """This learner's part. Every learner's parts together are the whole; no learner needs another for its own."""
        own = self._held()
        if not self._stage:  # all hold all of it: each writes some
            own = own[self._rank :: self._learners]
        tensors: dict[str, Tensor] = {}
        for held in own:
            state = self._base.state.get(held.master, {})  # empty before the first step
            tensors[f"{WEIGHT}/{held.start}/{held.name}"] = _on_cpu(held.of(held.master))
            for kind in MOMENTS:
                moment = held.of(state[kind]) if state else torch.zeros(held.count)
                tensors[f"{kind}/{held.start}/{held.name}"] = _on_cpu(moment)
            tensors[STEP] = torch.as_tensor(state[STEP] if state else 0.0, dtype=torch.float32).cpu()
        return bytes(safetensors.save(tensors))

    def begin(self) -> None:
        """Get ready for the parts of a checkpoint."""
        self._covered = {}
        self._parameters = dict(self._policy.named_parameters())
        self._by_name = {}
        if self._stage == 3:
            self._optimizer.checkpoint_event_prologue()
        for held in self._held():
            self._by_name.setdefault(held.name, []).append(held)
            state = self._base.state[held.master]
            for kind in MOMENTS:
                state[kind] = torch.zeros_like(held.master).detach()
            state[STEP] = torch.tensor(0.0)

    def add(self, part: bytes) -> None:
        """Take what this learner needs from one part."""
        tensors = safetensors.load(part)
        if STEP not in tensors:  # a learner that held nothing wrote an empty part
            return
        for held in self._by_name.values():
            for each in held:
                self._base.state[each.master][STEP].copy_(tensors[STEP])
        for key, values in tensors.items():
            if key != STEP:
                kind, start, name = key.split("/", 2)
                self._covered[kind, name] = self._covered.get((kind, name), 0) + values.numel()
                self._place(kind, name, int(start), values)

    def _place(self, kind: str, name: str, start: int, values: Tensor) -> None:
        end = start + values.numel()
        for each in self._by_name.get(name, []):
            first, last = max(start, each.start), min(end, each.start + each.count)
            if first < last:
                tensor = each.master if kind == WEIGHT else self._base.state[each.master][kind]
                each.of(tensor)[first - each.start : last - each.start] = values[first - start : last - start]
        if kind == WEIGHT and self._stage < 3:
            parameter = self._parameters.get(name)
            if parameter is not None:  # in the policy's own type, beside the float32 master
                parameter.detach().view(-1)[start:end] = values

    def end(self) -> None:
        """All parts are there: make the policy compute with them. Every learner must call this.

        Raises:
            UserError: They are not the whole state of this policy.
        """
        for name, parameter in self._parameters.items():
            whole = elements(parameter, self._stage)
            found = {kind: self._covered.pop((kind, name), 0) for kind in (WEIGHT, *MOMENTS)}
            if any(count != whole for count in found.values()):
                raise UserError(f"the checkpoint holds {min(found.values())} of the {whole} elements of {name}")
        if self._covered:
            raise UserError(f"the checkpoint is of another policy: it has {next(iter(self._covered))[1]}")
        if self._stage == 3:
            for group in range(len(self._optimizer.fp32_partitioned_groups_flat)):
                self._optimizer._reassign_or_swap_out_partitioned_parameters(group)
            self._optimizer.checkpoint_event_epilogue()


def _on_cpu(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float32, copy=True)
