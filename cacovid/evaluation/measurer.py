"""All that it takes to measure any question, as it travels to whoever measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cacovid.config import DataConfig, ModelConfig, SelectionConfig
from cacovid.data.reader import ItemReader
from cacovid.evaluation.measuring import Asked, Outcome, measure
from cacovid.evaluation.summary import Ran
from cacovid.methods.protocol import Method, needs_tower_attention
from cacovid.methods.registry import POLICY, build_methods, method_labels
from cacovid.models.fingerprint import model_fingerprint, text_digest
from cacovid.policy.base import CompressionPolicy
from cacovid.records import VideoQuestion


@dataclass(frozen=True, eq=False)
class Setup:
    """Model, data and methods of an evaluation."""

    model: ModelConfig
    data: DataConfig
    cache: Path | None  # folder of the embedding cache
    names: tuple[str, ...]  # of methods
    policies: Mapping[str, CompressionPolicy]  # on the CPU, by label
    selection: SelectionConfig | None
    ratios: tuple[float, ...]
    seed: int

    @property
    def labels(self) -> list[str]:
        """The methods' names in tables."""
        return method_labels(self.names, list(self.policies))

    def ran(self, items: Sequence[VideoQuestion]) -> Ran:
        """What is summed up."""
        trained = list(self.policies) if POLICY in self.names else []
        return Ran(self.model.path, items, self.labels, trained, self.ratios, self.seed)

    def settings(self, asked: Sequence[Asked]) -> dict[str, object]:
        """All that the rows depend on, but for who measures them."""
        policies = {
            label: text_digest(model_fingerprint(policy, policy.config.model_dump()), policy.metadata.model_dump_json())
            for label, policy in self.policies.items()
        }
        return {
            "model": self.model.model_dump(mode="json"),
            "instruction": self.data.instruction,
            "methods": self.labels,
            "policies": policies,
            "selection": None if self.selection is None else self.selection.model_dump(mode="json"),
            "ratios": list(self.ratios),
            "seed": self.seed,
            "questions": text_digest(*map(repr, asked)),
        }


class Measurer:
    """Holds one replica with all methods, loaded when first needed."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @cached_property
    def reader(self) -> ItemReader:
        """The Video-LLM with its video reader."""
        return ItemReader.load(self.setup.model, self.setup.data, self.setup.cache)

    @cached_property
    def methods(self) -> list[Method]:
        """Built for :attr:`reader`, which is told what they need."""
        setup = self.setup
        built = build_methods(
            setup.names, setup.policies, self.reader.video_llm, seed=setup.seed, selection=setup.selection
        )
        self.reader.tower_attention = needs_tower_attention(built)
        return built

    def measure(self, asked: Asked) -> Outcome:
        """Everything about one question."""
        return measure(self.reader, self.methods, asked, self.setup.ratios, self.setup.seed)
