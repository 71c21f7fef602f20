"""Policy 'late': late interaction between video tokens and the words of the question (ours).

Not the paper's network: it has no attention layer and costs well under 1 % of it, and becomes aware
of the question from far fewer answers (docs/benchmarks.md has the figures).

Shape legend: B batch, N video tokens, T frames, S tokens per frame, Lt text columns, D width,
H similarity heads, W width of a head, C context width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cacovid.config import PolicyConfig
from cacovid.policy.base import CompressionPolicy, PolicyOutput, pool_frames
from cacovid.policy.batch import PolicyBatch, collate, frames_of
from cacovid.policy.decoder_layer import FirstLayer
from cacovid.records import PolicyInput

TEMPERATURE = 0.1  # of the soft maximum over text tokens
CONTEXT_SCALE = 0.5  # brings the linear token feature to the scale of the standardised similarities
VARIANCE_FLOOR = 1e-6
NORM_FLOOR = 1e-6


class LatePolicy(CompressionPolicy):
    """Per token: H standardised similarities to the text, C linear features, two redundancy cosines; an MLP.

    The frame logits have no parameters of their own: they are the frame's token logits averaged with
    softmax(score) as weights, a smooth "best token of the frame". So they carry signal whenever the
    token scores do, also under credit regression, which trains no frame head on token samples.
    """

    kind = "late"
    takes_chunks = True

    def __init__(self, config: PolicyConfig, hidden_size: int, layer: FirstLayer | None = None) -> None:
        del layer  # nothing here comes from the language model
        super().__init__(config, hidden_size)
        if config.question_aware:
            self.similarity = nn.Linear(hidden_size, config.heads * config.width, bias=False)
            self.text_bias = nn.Linear(hidden_size, config.heads, bias=False)
            self.position_bias = nn.Parameter(torch.zeros(config.heads, config.text_positions))
        self.context = nn.Linear(hidden_size, config.context_width)
        inputs = (config.heads if config.question_aware else 0) + config.context_width + 2
        self.scorer = nn.Sequential(nn.Linear(inputs, config.hidden), nn.SiLU(), nn.Linear(config.hidden, 2))
        self._initialise()

    def _initialise(self) -> None:
        if not self.config.question_aware:
            return
        with torch.no_grad():
            for rows in self.similarity.weight.split(self.config.width):
                nn.init.orthogonal_(rows)
            self.text_bias.weight.zero_()

    def forward(self, batch: PolicyBatch) -> PolicyOutput:
        """Logits of every token and frame, computed in float32 whatever the inputs' type."""
        features = batch.features.float()
        pooled, own = self._parts(features - features.mean(dim=1, keepdim=True), batch)
        token_logits = self._score(pooled, own)
        return PolicyOutput(token_logits, pool_frames(token_logits, batch.grid.frames))

    @torch.no_grad()
    def logits_in_chunks(self, inputs: PolicyInput, steps: int) -> PolicyOutput:
        """As :meth:`logits`: what a token shares with the whole clip is H + C + 2 numbers, collected chunk by chunk."""
        grid, size = inputs.grid, steps * inputs.grid.per_frame
        sums = [rows.to(self.device).double().sum(dim=0) for rows in inputs.features.split(size)]
        mean = (torch.stack(sums).sum(dim=0) / grid.tokens).float()
        collected = [self._chunk(inputs, mean, start, steps) for start in range(0, grid.frames, steps)]
        pooled, own = (torch.cat(parts, dim=1) for parts in zip(*collected, strict=True))
        token_logits = self._score(pooled, own)
        return PolicyOutput(token_logits, pool_frames(token_logits, grid.frames))

    def _chunk(self, inputs: PolicyInput, mean: Tensor, start: int, steps: int) -> tuple[Tensor, Tensor]:
        """:meth:`_parts` of the frames from ``start`` on; the frame before them is looked at as well."""
        grid = inputs.grid
        before = min(start, 1)
        frames = slice(start - before, min(start + steps, grid.frames))
        chunk = collate([frames_of(inputs, frames)]).to(self.device)
        pooled, own = self._parts(chunk.features.float() - mean, chunk)
        first = before * grid.per_frame
        return pooled[:, first:], own[:, first:]

    def _parts(self, x: Tensor, batch: PolicyBatch) -> tuple[Tensor, Tensor]:
        """What a token needs of its clip: (B, N, H) pooled similarities, (B, N, C + 2) all else."""
        context, heads = self._video_projections(x)
        own = torch.cat([context * CONTEXT_SCALE, self._redundancy(x, batch)], dim=-1)
        return (x.new_zeros(*x.shape[:2], 0) if heads is None else self._similarities(heads, batch)), own

    def _score(self, pooled: Tensor, own: Tensor) -> Tensor:
        """(B, N, 2) logits from the parts of all tokens, the similarities standardised over the clip."""
        parts = torch.cat([standardised(pooled), own], dim=-1)
        return _linear(self.scorer[2], F.silu(_linear(self.scorer[0], parts)))

    def _video_projections(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, N, C) linear features and (H, B, N, W) head projections: one product, one reading of the tokens."""
        if not self.config.question_aware:
            return _linear(self.context, x), None
        weight = torch.cat([self.context.weight.float(), self.similarity.weight.float()])
        bias = F.pad(self.context.bias.float(), (0, self.similarity.out_features))
        context, heads = F.linear(x, weight, bias).split([self.config.context_width, self.similarity.out_features], -1)
        return context, self._by_head(heads)

    def _similarities(self, video: Tensor, batch: PolicyBatch) -> Tensor:
        """(B, N, H) soft maximum over the text of cosine + text bias."""
        text = batch.text.float()
        words = self._by_head(_linear(self.similarity, text))  # (H, B, Lt, W)
        bias = _linear(self.text_bias, text).transpose(1, 2) + self._position_bias(batch.text_mask)  # (B, H, Lt)
        bias = bias.masked_fill(~batch.text_mask[:, None, :], -torch.inf).transpose(0, 1) / TEMPERATURE
        # Only the short side is normalised before the product: dividing the video side afterwards saves
        # most of the memory traffic.
        scale = 1 / (TEMPERATURE * video.norm(dim=-1, keepdim=True).clamp_min(NORM_FLOOR))
        words = F.normalize(words, dim=-1, eps=NORM_FLOOR)
        pooled = TEMPERATURE * torch.logsumexp(video @ words.transpose(2, 3) * scale + bias[:, :, None, :], dim=-1)
        return pooled.permute(1, 2, 0)

    def _by_head(self, projected: Tensor) -> Tensor:
        """(H, B, rows, W) of (B, rows, H * W)."""
        heads: Tensor = projected.unflatten(-1, (self.config.heads, self.config.width))
        return heads.permute(2, 0, 1, 3)

    def _position_bias(self, text_mask: Tensor) -> Tensor:
        """(B, H, Lt) learned bias by the text position counted from the prompt's end."""
        from_end = text_mask.sum(dim=1, keepdim=True) - 1 - torch.arange(text_mask.shape[1], device=text_mask.device)
        index = from_end.clamp(0, self.config.text_positions - 1)
        return self.position_bias.float()[:, index].transpose(0, 1)

    @staticmethod
    def _redundancy(x: Tensor, batch: PolicyBatch) -> Tensor:
        """(B, N, 2) cosines to the frame's mean and to the same cell one frame earlier (0 in frame 0)."""
        frames = x.unflatten(1, (batch.grid.frames, batch.grid.per_frame))
        norms = frames.norm(dim=-1).clamp_min(NORM_FLOOR)  # (B, T, S)
        mean = F.normalize(frames.mean(dim=2), dim=-1, eps=NORM_FLOOR)  # (B, T, D)
        # Sums of products without the products: what they would fill is as large as the clip itself.
        to_mean = torch.einsum("btsd,btd->bts", frames, mean) / norms
        to_earlier = torch.einsum("btsd,btsd->bts", frames[:, 1:], frames[:, :-1]) / (norms[:, 1:] * norms[:, :-1])
        to_earlier = torch.cat([torch.zeros_like(to_mean[:, :1]), to_earlier], dim=1)
        return torch.stack([to_mean, to_earlier], dim=-1).flatten(1, 2)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Everything is a head: nothing comes from the language model."""
        return list(self.parameters()), []


def standardised(similarities: Tensor) -> Tensor:
    """(B, N, H) of mean 0 and variance 1 over the clip's tokens."""
    centred = similarities - similarities.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)
    return centred * torch.rsqrt(variance + VARIANCE_FLOOR)


def _linear(module: nn.Module, x: Tensor) -> Tensor:
    """A linear layer in float32, also where the learner keeps bfloat16 weights."""
    assert isinstance(module, nn.Linear)
    bias = None if module.bias is None else module.bias.float()
    return F.linear(x, module.weight.float(), bias)
