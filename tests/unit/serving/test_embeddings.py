"""Compressed prompts for other engines."""

import io

import pytest
import torch
from safetensors.torch import load as load_tensors

from serving.engine.records import (
    CompressionWish,
)
from tests.support.serving_engine import QUESTION, clip_of, compresses, engine_of, failure, one, tiny_llm
from tests.support.tiny_models import BUILDERS


def test_kept_embeddings_are_the_models(llm, engine):
    compressed = one(engine, compresses(extras=frozenset({"embeddings"})))[0]
    tensors = load_tensors(compressed.embeddings)
    features = llm.encode(llm.watch(clip_of(0).frames), QUESTION).features
    assert torch.equal(tensors["indices"], torch.tensor(compressed.kept))
    assert torch.equal(tensors["embeddings"], features[tensors["indices"]])


@pytest.mark.parametrize("kind", sorted(BUILDERS))
def test_prompt_embeds_give_the_same_logits_or_are_refused(kind):
    llm = tiny_llm(kind)
    engine = engine_of(kind)
    wish = CompressionWish(retention=0.2, positions="contiguous")
    event = one(engine, compresses(compression=wish, extras=frozenset({"prompt_embeds"})))[0]
    if kind == "qwen3_vl":
        assert failure([event]).error.status == 422
        assert "deepstack" in failure([event]).error.message
        assert "plugin" in failure([event]).error.message
        return
    embeds = torch.load(io.BytesIO(event.prompt_embeds), weights_only=True)
    encoded = llm.encode(llm.watch(clip_of(0).frames), QUESTION)
    with torch.inference_mode():
        expected = llm.model(**llm.pack(encoded, torch.tensor([event.kept]), "contiguous")).logits[:, -1]
        decoder = llm.model.get_decoder()
        hidden = decoder(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[:, -1]
        logits = llm.model.get_output_embeddings()(hidden)
    assert torch.allclose(logits, expected, atol=1e-5)


def test_prompt_embeds_with_gaps_between_positions_are_refused(engine):
    events = one(
        engine, compresses(compression=CompressionWish(retention=0.2, positions="original"), extras={"prompt_embeds"})
    )
    assert failure(events).error.param == "compression.positions"
