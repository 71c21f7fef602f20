"""A Video-LLM without its tower, as vLLM runs it: compressed prompts with their own positions and tower levels.

vLLM's own language model of the family does the work. Rows of kept video tokens take the place of what a tower
would give, and every prompt brings its position ids along. Families with one position per token are run as M-RoPE
models towards vLLM, whose numbering it leaves to the model; all three rows are then equal, and one is read.

Shape legend: S prompt columns, R injected rows, D width, C columns of a step.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsMRoPE, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.qwen3_vl import Qwen3LLMForCausalLM
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    _merge_multimodal_embeddings,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.sequence import IntermediateTensors

from serving.vllm.deepstack import Deepstack
from serving.vllm.names import LANGUAGE_MODELS, NEXT, POSITIONS, ROWS
from serving.vllm.processor import CompressedInfo, NoDummyInputs, NoProcessor

_LANGUAGE = "language_model."


@MULTIMODAL_REGISTRY.register_processor(NoProcessor, info=CompressedInfo, dummy_inputs=NoDummyInputs)
class CompressedVideoLLM(nn.Module, SupportsMultiModal, SupportsMRoPE, SupportsPP):
    """The language model of a Video-LLM, whose weights it takes from the Video-LLM's own files.

    Raises:
        ValueError: a family that is not known, or a vLLM that would number positions itself.
    """

    # Names in files of transformers 5, and of earlier ones.
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.language_model.": "language_model.model.",
            "model.text_model.": "language_model.model.",
            "language_model.model.": "language_model.model.",
            "language_model.lm_head.": "language_model.lm_head.",
            "lm_head.": "language_model.lm_head.",
            "model.layers.": "language_model.model.layers.",
            "model.embed_tokens.": "language_model.model.embed_tokens.",
            "model.norm.": "language_model.model.norm.",
        }
    )

    language_model: Any  # one of vLLM's
    _mark_language_model: Any  # of SupportsMultiModal, like the next
    _embed_text_input_ids: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        text = config.get_text_config()
        if not vllm_config.model_config.uses_mrope:
            raise ValueError("this vLLM would number the positions of compressed prompts itself: see docs/vllm.md")
        self._axes = "mrope_section" in (text.rope_parameters or {})
        with self._mark_language_model(vllm_config):
            self.language_model = _language_model(vllm_config, text, maybe_prefix(prefix, "language_model"))
        levels = len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
        self._deepstack = Deepstack(levels, text.hidden_size, vllm_config) if levels else None
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> MultiModalEmbeddings:  # noqa: ANN401
        """The rows of each item, (R, D) or with tower levels beside them (R, D + levels * D)."""
        return list(kwargs[ROWS])

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[Tensor, int]:
        """(3, S) positions and what is added to later columns' numbers; a prompt without video is numbered 0..S-1.

        A request that vLLM put aside and takes up again has its answer so far among ``input_tokens``.
        """
        length = len(input_tokens)
        if not mm_features:
            return torch.arange(length).expand(3, -1), 0
        item = mm_features[0].data
        if item is None:
            raise ValueError("vLLM kept an item's positions from the model: set mm_processor_cache_gb=0")
        positions, following = item[POSITIONS].data, int(item[NEXT].data)
        prompt = positions.shape[1]
        answer = torch.arange(following, following + length - prompt).expand(3, -1)
        return torch.cat([positions, answer], dim=1), following - prompt

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: MultiModalEmbeddings | None = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """(C, D) embeddings with the rows in place of their placeholders."""
        embeds = self._embed_text_input_ids(input_ids, self.language_model.embed_input_ids, is_multimodal=is_multimodal)
        if multimodal_embeddings is None or len(multimodal_embeddings) == 0:
            return embeds
        assert is_multimodal is not None
        if self._deepstack is not None:
            multimodal_embeddings = self._deepstack.hold(embeds, multimodal_embeddings, is_multimodal)
        return _merge_multimodal_embeddings(embeds, multimodal_embeddings, is_multimodal)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor | IntermediateTensors:
        """(C, D) hidden states of a step."""
        if positions.ndim != 2:
            raise ValueError("this vLLM numbers the positions of compressed prompts itself: see docs/vllm.md")
        levels: dict[str, Any] = {}
        if self._deepstack is not None and inputs_embeds is not None and intermediate_tensors is None:
            levels["deepstack_input_embeds"] = self._deepstack.held(inputs_embeds.shape[0])
        hidden = self.language_model.model(
            input_ids, positions if self._axes else positions[0], intermediate_tensors, inputs_embeds, **levels
        )
        if levels:
            assert self._deepstack is not None
            self._deepstack.clear()
        return hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits of (C, D) hidden states."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Take the language model's weights; tower and projector stay in the files."""
        renamed = self.hf_to_vllm_mapper.apply(weights)
        return AutoWeightsLoader(self).load_weights(pair for pair in renamed if pair[0].startswith(_LANGUAGE))


def _language_model(vllm_config: VllmConfig, text: Any, prefix: str) -> Any:  # noqa: ANN401
    kind = text.model_type
    if kind not in LANGUAGE_MODELS:
        raise ValueError(f"no language model of vLLM is known for {kind!r}: {', '.join(LANGUAGE_MODELS)}")
    architectures = [LANGUAGE_MODELS[kind]]
    if kind == "qwen3_vl_text":
        own = vllm_config.with_hf_config(text, architectures=architectures)
        return Qwen3LLMForCausalLM(vllm_config=own, prefix=prefix)
    return init_vllm_registered_model(vllm_config, prefix=prefix, hf_config=text, architectures=architectures)
