"""Questions packed behind one video prefix, each of which sees the video and itself.

Shape legend: B clips, N video tokens, k retained ones, P = 3 + k prefix columns, Lq columns of all questions,
L = P + Lq.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from cacovid.embedded.tokenizer import TURN_START, VOCABULARY

PREFIX: Final = tuple(VOCABULARY[token] for token in (TURN_START, "user"))


def packed_positions(kept: Tensor, lengths: Sequence[int], tokens: int) -> Tensor:
    """(B, L) position ids: retained tokens keep their place in the full prompt, all questions begin after it.

    Args:
        kept: (B, k) of ``tokens`` video tokens.
        lengths: Columns of each question.
    """
    batch, newline = len(kept), len(PREFIX) + tokens
    parts = [
        torch.arange(len(PREFIX)).expand(batch, -1),
        len(PREFIX) + kept,
        torch.full((batch, 1), newline),
        torch.cat([newline + 1 + torch.arange(length) for length in lengths]).expand(batch, -1),
    ]
    return torch.cat(parts, dim=1)


def packed_mask(retained: int, lengths: Sequence[int]) -> Tensor:
    """(1, 1, L, L) bool: a question sees the prefix and itself, causally, and no other question."""
    prefix = len(PREFIX) + retained + 1
    own = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    block = torch.cat([torch.full((prefix,), -1), own])
    columns = torch.arange(len(block))
    seen = (block[None, :] == -1) | (block[None, :] == block[:, None])
    return (seen & (columns[None, :] <= columns[:, None]))[None, None]


def read_packed(
    model: LlavaOnevisionForConditionalGeneration,
    features: Tensor,
    kept: Tensor,
    ids: Tensor,
    lengths: Sequence[int],
    tokens: int,
    layers: Sequence[int] = (2, 3, 4),
) -> tuple[Tensor, ...]:
    """Run the language model on retained features (B, k, D) of ``tokens`` and on questions (B, Lq).

    Returns:
        Outputs of ``layers`` on the questions, each (B, Lq, D); that of layer 4 is normalised.
    """
    batch = len(ids)
    embed = model.get_input_embeddings()
    parts = [
        embed(torch.tensor(PREFIX)).expand(batch, -1, -1),
        features,
        model.model.image_newline.expand(batch, 1, -1),
        embed(ids),
    ]
    outputs = model.model.language_model(
        inputs_embeds=torch.cat(parts, dim=1),
        attention_mask=packed_mask(kept.shape[1], lengths),
        position_ids=packed_positions(kept, lengths, tokens),
        output_hidden_states=True,
        use_cache=False,
    )
    return tuple(outputs.hidden_states[layer][:, -ids.shape[1] :] for layer in layers)
