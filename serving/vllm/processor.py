"""What vLLM asks about a model's media: prompts come ready (:mod:`serving.vllm.prompt`), nothing is to be processed."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from transformers import BatchFeature
from vllm.config.multimodal import BaseDummyOptions
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import BaseDummyInputsBuilder, BaseMultiModalProcessor, BaseProcessingInfo, PromptUpdate

from serving.vllm.names import MODALITY


class CompressedInfo(BaseProcessingInfo):
    """One item a prompt, at most as long as the prompt."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """The largest number of items of each kind."""
        return {MODALITY: 1}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """The most rows of one item."""
        return {MODALITY: seq_len}


class NoDummyInputs(BaseDummyInputsBuilder[CompressedInfo]):
    """vLLM is told not to profile a tower (``skip_mm_profiling``): there is none."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """No text."""
        return ""

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, BaseDummyOptions] | None = None
    ) -> NoReturn:
        """There is nothing to profile."""
        raise _not_ready()


class NoProcessor(BaseMultiModalProcessor[CompressedInfo]):
    """Refuses raw media: vLLM would number their positions itself."""

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        raise _not_ready()

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        raise _not_ready()

    def apply(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401
        """Refuse."""
        raise _not_ready()


def _not_ready() -> ValueError:
    return ValueError("this model takes prompts that were compressed before, with their positions, and no raw media")
