"""Answers that are written together, token by token; others join between two tokens, whole ones leave.

    add: prompts of about one length padded on the left -> one forward pass -> first tokens, cache rows
    step: one forward pass with all rows' last tokens -> next tokens

Every row keeps its own positions, mask, draws and text, so that no answer depends on its neighbours.

Shape legend: B rows, L columns of the cache, P position rows, V vocabulary.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from cacovid.models.adapter import VideoLLM
from serving.engine.decoding import Answering, Row
from serving.engine.drawing import Draws
from serving.engine.join import join, join_caches, left_padded, select_rows
from serving.engine.records import Token

_PADDING = 0.25  # of a forward pass over prompts, at most


class Writing:
    """A row in the batch, with what its next token depends on."""

    def __init__(self, row: Row, begun: float) -> None:
        self.row = row
        self.draws = Draws(row.decoding)
        self.begun = begun
        self.last = 0

    def scores(self, logits: Tensor) -> Tensor:
        """(V,) whose argmax is the next token, for ``logits`` (V,)."""
        return self.draws.scores(logits, len(self.row.tokens), self.row.tokens)

    def take(self, token: int, logits: Tensor, ends: Sequence[int]) -> bool:
        """The next token, drawn by ``logits`` (V,); whether the answer goes on."""
        alternatives = self.row.decoding.logprobs
        told = Token(token) if alternatives is None else _told(logits, token, alternatives)
        self.row.take(told, ends, time.perf_counter() - self.begun)
        self.last = token
        return not self.row.done


def _told(logits: Tensor, token: int, alternatives: int) -> Token:
    """What the model itself thinks of ``token`` by its ``logits`` (V,), and of the likeliest ones."""
    logprobs = logits.log_softmax(0)
    best = logprobs.topk(min(alternatives, logprobs.shape[0]))
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Token(token, float(logprobs[token]), top)


class RunningBatch:
    """For one thread; see above."""

    def __init__(self, llm: VideoLLM) -> None:
        self._llm = llm
        self._rows: list[Writing] = []
        self._cache = DynamicCache()
        self._mask = torch.zeros(0, 0)  # (B, L)
        self._positions = torch.zeros(0)  # (P, B, 1) or (B, 1), of the last column

    @property
    def answerings(self) -> list[Answering]:
        """Requests with an answer that is not whole."""
        return list(dict.fromkeys(writing.row.answering for writing in self._rows))

    @torch.inference_mode()
    def add(self, answerings: Sequence[Answering]) -> None:
        """Read the prompts of new requests, all in one pass, and draw the first token of each answer."""
        begun = time.perf_counter()
        prompts = self._prompts(answerings)
        cache = DynamicCache()  # without the configuration every layer keeps all columns: masks tell what is seen
        logits = self._forward(cache, **prompts)
        rows = [Writing(row, begun) for answering in answerings for row in answering.rows]
        owners = [place for place, answering in enumerate(answerings) for _ in answering.rows]
        keep = self._take(rows, logits[owners])
        if not keep:
            return
        kept = torch.tensor([owners[place] for place in keep], device=logits.device)
        if kept.tolist() != list(range(len(answerings))):
            select_rows(cache, kept)
        mask, positions = prompts["attention_mask"][kept], prompts["position_ids"][..., kept, -1:]
        if self._rows:
            join_caches(self._cache, cache)
            length = self._cache.get_seq_length()
            mask = torch.cat([left_padded(each, length) for each in (self._mask, mask)])
            positions = torch.cat([self._positions, positions], dim=-2)
        else:
            self._cache = cache
        self._mask, self._positions = mask, positions
        self._rows += [rows[place] for place in keep]

    @torch.inference_mode()
    def step(self) -> None:
        """One more token of every answer."""
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        self._positions = self._positions + 1
        last = torch.tensor([[writing.last] for writing in self._rows], device=self._llm.device)
        logits = self._forward(self._cache, input_ids=last, attention_mask=self._mask, position_ids=self._positions)
        keep = self._take(self._rows, logits)
        if len(keep) < len(self._rows):
            self._reduce(keep)

    def _prompts(self, answerings: Sequence[Answering]) -> dict[str, Any]:
        llm = self._llm
        packed = [
            llm.pack(prompt.encoded, prompt.kept[None].to(llm.device), prompt.positions)
            for prompt in (answering.prompt for answering in answerings)
        ]
        # Flash attention takes a lone prompt with gaps in its positions for packed ones, unless its mask has a gap.
        lone = len(packed) == 1 and llm.config.attention == "flash_attention_2"
        least = packed[0]["input_ids"].shape[1] + 1 if lone else 0
        return join(packed, int(llm.model.generation_config.pad_token_id), least)

    def _forward(self, cache: DynamicCache, **arguments: Any) -> Tensor:  # noqa: ANN401
        """(B, V) float32 logits of the next token of every row."""
        output = self._llm.model(**arguments, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].float()  # type: ignore[no-any-return]

    def _take(self, rows: Sequence[Writing], logits: Tensor) -> list[int]:
        """Hand every row its next token; the places of those that go on."""
        scores = logits
        if not all(writing.draws.greedy for writing in rows):
            pairs = zip(rows, logits, strict=True)
            scores = torch.stack([writing.scores(own) for writing, own in pairs])
        tokens = scores.argmax(1).tolist()
        drawn = zip(rows, tokens, logits, strict=True)
        going = [writing.take(token, own, self._llm.end_tokens) for writing, token, own in drawn]
        return [place for place, goes in enumerate(going) if goes]

    def _reduce(self, keep: list[int]) -> None:
        """Let whole answers go, and the columns that were theirs alone."""
        self._rows = [self._rows[place] for place in keep]
        if not keep:
            self._cache = DynamicCache()
            return
        rows = torch.tensor(keep, device=self._mask.device)
        mask = self._mask[rows]
        begin = int(mask.any(0).int().argmax())
        select_rows(self._cache, rows, begin)
        self._mask, self._positions = mask[:, begin:], self._positions[..., rows, :]


def of_one_length(answerings: Sequence[Answering]) -> list[list[Answering]]:
    """Those that are read in one pass: of so similar lengths that at most a quarter of it is padding."""
    parts: list[list[Answering]] = []
    columns = 0
    for answering in sorted(answerings, key=lambda each: each.prompt.length):
        longest = answering.prompt.length
        if parts and columns + longest >= (1 - _PADDING) * longest * (len(parts[-1]) + 1):
            parts[-1].append(answering)
            columns += longest
        else:
            parts.append([answering])
            columns = longest
    return parts
