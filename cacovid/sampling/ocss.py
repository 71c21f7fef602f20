"""Online combination space sampling (OCSS): G token combinations of equal size for one item.

    token logits -> a score group per frame, tokens inside it ("groups")          -> token samples
    frame logits -> frames by capped probability, diverse tokens of their union   -> frame samples (mode 'mixed')
    features     -> the most diverse tokens of each frame ("density_peaks")       -> one content sample (mode 'mixed')

Source: Ma et al., AAAI 2026. Departures: probability caps are applied per frame and reach their fixed
point (the reference normalises over the whole batch, which voids the frame cap); no loop over
frames or samples; every draw takes a generator.

Shape legend: G combinations, N video tokens, T frames, S tokens per frame, k tokens per frame, D width.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cacovid.config import SamplingConfig
from cacovid.errors import UserError
from cacovid.records import Combinations, Mode, TokenGrid
from cacovid.sampling.capping import cap_probabilities
from cacovid.sampling.density_peaks import diverse_in_unions, diverse_per_frame
from cacovid.sampling.groups import draw_successively, draw_tokens
from cacovid.sampling.rates import tokens_at


class ModeCounts(NamedTuple):
    """How many of the G combinations each sampler draws; they come in this order."""

    content: int
    token: int
    frame: int


def mode_counts(config: SamplingConfig) -> ModeCounts:
    """Token samples only, or the paper's 1 content, 3G/4 - 1 token and G/4 frame samples (the rest, if 4 ∤ G)."""
    if config.modes == "token":
        return ModeCounts(0, config.group, 0)
    token = 3 * config.group // 4 - 1
    return ModeCounts(1, token, config.group - 1 - token)


def frames_drawn(config: SamplingConfig, grid: TokenGrid, kept: int) -> int:
    """Frames of a frame sample: ``ceil(frame_ratio * T)``, but enough to hold its ``kept * T`` tokens."""
    wanted = math.ceil(config.frame_ratio * grid.frames - 1e-9)
    needed = math.ceil(kept * grid.frames / grid.per_frame)
    return max(wanted, needed)


def explored(config: SamplingConfig, progress: float) -> float:
    """Share of the drawn combinations that follow no policy, ``progress`` (in [0, 1]) into the run."""
    left = (1 - progress) / (1 - config.explore_until) if progress > config.explore_until else 1.0
    return config.explore * left


def draw_frames(
    scores: Tensor,
    count: int,
    samples: int,
    config: SamplingConfig,
    generator: torch.Generator,
    explore: float = 0.0,
) -> Tensor:
    """(M, F) int64 frames, ascending; sample 0 takes the plain top frames, the last ones follow no score.

    Frames are drawn without replacement, one after the other in proportion to softmax(score) capped
    at ``max_frame_prob / T``.

    Args:
        scores: (T,) float64 frame scores.
        count: F frames per sample.
        samples: M combinations, at least 1.
        config: gives the cap.
        generator: CPU generator of every draw.
        explore: share of the drawn samples that follow no score.
    """
    total = scores.shape[0]
    blank = round(explore * (samples - 1))
    weights = cap_probabilities(torch.softmax(scores, dim=-1), config.max_frame_prob / total)
    rows = torch.cat([weights.expand(samples - 1 - blank, total), torch.ones(blank, total, dtype=torch.float64)])
    top = scores.argsort(descending=True, stable=True)[:count]
    return torch.cat([top[None], draw_successively(rows, count, generator)]).sort(dim=-1).values


def sample_combinations(
    token_logits: Tensor,
    frame_logits: Tensor,
    features: Tensor,
    grid: TokenGrid,
    config: SamplingConfig,
    rate: float,
    generator: torch.Generator,
    explore: float = 0.0,
) -> Combinations:
    """Draw the G combinations of one inner iteration from the item's old logits.

    Args:
        token_logits: (N, 2) drop and keep logits.
        frame_logits: (T, 2) drop and keep logits; read by mode 'mixed' only.
        features: (N, D) video tokens on any device; read by mode 'mixed' only.
        grid: how the N tokens lie.
        config: modes, group size, caps.
        rate: sampling rate r, k = round(r * H*W) tokens per frame (see ``rate_of`` for a given k).
        generator: CPU generator; equal seeds give equal combinations.
        explore: share of the token and of the frame samples that are drawn as if all scores were equal; the plain
            tops stay.

    Returns:
        Combinations on the CPU, each of exactly k*T tokens.
    """
    kept = tokens_at(rate, grid)
    counts = mode_counts(config)
    token_scores = _scores(token_logits, config).unflatten(0, (grid.frames, grid.per_frame))
    local = draw_tokens(token_scores, kept, counts.token, rate, config, generator, explore)
    start = torch.arange(grid.frames) * grid.per_frame
    parts = [(local + start[:, None]).flatten(1)]
    frames = torch.zeros(config.group, grid.frames, dtype=torch.bool)
    if config.modes == "mixed":
        cells = features.unflatten(0, (grid.frames, grid.per_frame))
        content = diverse_per_frame(cells, kept).cpu() + start[:, None]
        count = frames_drawn(config, grid, kept)
        drawn = draw_frames(_scores(frame_logits, config), count, counts.frame, config, generator, explore)
        union = diverse_in_unions(cells, drawn.to(cells.device), kept * grid.frames).cpu()
        parts = [content.reshape(1, -1), *parts, union]
        frames[counts.content + counts.token :].scatter_(1, drawn, True)
    modes = torch.tensor([Mode.CONTENT, Mode.TOKEN, Mode.FRAME], dtype=torch.uint8)
    return Combinations(
        indices=torch.cat(parts).sort(dim=-1).values.int(),
        modes=modes.repeat_interleave(torch.tensor(counts)),
        frames=frames,
        rate=rate,
    )


def _scores(logits: Tensor, config: SamplingConfig) -> Tensor:
    """(rows,) float64 scores to draw by, on the CPU; UserError when training has diverged."""
    scores = (logits[:, 1] - logits[:, 0]).detach().double().cpu() / config.temperature
    if not bool(scores.isfinite().all()):
        raise UserError("the policy's logits are not finite: lower optimizer.lr or optimizer.grad_norm and resume")
    return scores
