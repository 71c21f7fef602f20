"""Tokens unlike their clip and their frame.

Shape legend: N video tokens, T frames, S tokens per frame, D width, k retained tokens.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cacovid.errors import NotDefined
from cacovid.methods.protocol import Baseline, EvaluationCase
from cacovid.methods.selection import top_tokens
from cacovid.methods.similarity import by_frame

TEMPERATURE = 0.01  # of the softmax over frames
KERNELS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)


class VidCom2(Baseline):
    """Frames unlike the clip get more tokens; in each, those least like clip and frame are kept (Liu et al. 2025).

    Likeness is a sum of Gaussian kernels around a mean, on the half of the channels that vary least. The paper's
    budgets a frame are rounded; tokens are then dropped or added until exactly k are kept. Ties go to the lower index.
    """

    name = "vidcom2"

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """(k,) ascending token indices.

        Raises:
            NotDefined: a budget of less than a token a frame.
        """
        grid, count = case.input.grid, case.budget(retention)
        if count < grid.frames:
            raise NotDefined(f"VidCom2 keeps a token of each frame: {count} tokens are fewer than {grid.frames} frames")
        features = case.input.features.float()
        calm = features.var(dim=0, correction=0).argsort(stable=True)[: features.shape[1] // 2]
        frames = normalize(by_frame(features[:, calm], grid), dim=-1)
        to_clip = likeness(frames, frames.mean(dim=(0, 1))).double().cpu()
        redundancy = to_clip + likeness(frames, frames.mean(dim=1, keepdim=True)).double().cpu()
        counts = frame_budgets(-to_clip.mean(dim=1), retention, grid.per_frame)
        ranks = redundancy.argsort(dim=1, stable=True).argsort(dim=1)
        # What the frames' budgets keep comes first, then the rest, each with the least redundant in front.
        late = (ranks >= counts[:, None]).flatten()
        return top_tokens(-redundancy.flatten() - late * 2 * (redundancy.max() - redundancy.min() + 1), count)


def likeness(tokens: Tensor, centre: Tensor) -> Tensor:
    """(T, S) sum of Gaussian kernels of the distance of (T, S, D) ``tokens`` to ``centre``."""
    squared = (tokens - centre).square().sum(-1)
    return torch.stack([torch.exp(-squared / (2 * alpha)) for alpha in KERNELS]).sum(0)


def frame_budgets(scores: Tensor, retention: float, per_frame: int) -> Tensor:
    """(T,) int64 tokens of each frame, within 1 .. S, from (T,) ``scores``."""
    shares = torch.softmax((scores - scores.max()) / TEMPERATURE, dim=0)
    rates = (retention * (1 + shares - shares.mean())).clamp(max=1)
    return (per_frame * rates).round().long().clamp(1, per_frame)
