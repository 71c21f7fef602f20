"""Evidence likelihood (ours): where lies what makes the answer right?

Not the paper's objective. A question is taken to hide a piece of evidence: m tokens that show the same, any of which
is enough. The policy says where, by softmax over its scores; what the combinations earned says how likely that is:

    P(right | the token is kept)    = s
    P(right | the token is dropped) = q * s + (1 - q) * g,    q = 1 - (1 - p)^(m - 1)

with g the chance to guess and p the policy's own share of the tokens kept: q is the chance that another of the m is
among them. What is not known of a question, m and g, is summed over. The loss is -log of the combinations' likelihood;
its gradient moves the policy from what it believed to what it should have, so the questions that it understands teach
it to read the others (expectation-maximisation). One right or wrong answer tells of all tokens at once, which credits,
one mean a token, do not see: docs/benchmarks.md, "The price of training".

Shape legend: B records, R combinations (rows) of all of them, N video tokens, T frames, H pairs of m and g.
"""

from itertools import product
from math import log
from typing import Final

import torch
from torch import Tensor

from cacovid.config import ObjectiveConfig
from cacovid.objective.memory import Memory
from cacovid.policy.base import PolicyOutput

TOKENS: Final = (1, 2, 4, 8)  # m
GUESSED: Final = (0.1, 0.25, 0.5)  # g
_SURE: Final = 0.95  # s
_TINY: Final = 1e-9
ANCHOR: Final = 0.01  # weight of the squared mean score


def log_likelihood(prior: Tensor, memory: Memory) -> Tensor:
    """(B, N) float64: of all that a record's combinations earned, were the token part of its evidence; over all H.

    Args:
        prior: (B, N) float64 probabilities, each row's sum is 1.
        memory: the combinations; rewards in [0, 1] count as right with that weight.
    """
    pairs = torch.tensor([*product(TOKENS, GUESSED)], dtype=torch.float64)
    tokens, guessed = pairs.T
    row = torch.arange(len(memory.reward)).repeat_interleave(memory.size)
    share = torch.bincount(row, weights=prior.flatten()[memory.kept], minlength=len(memory.reward))
    another = 1 - (1 - share[:, None]).clamp_min(_TINY) ** (tokens - 1)
    dropped = another * _SURE + (1 - another) * guessed
    reward = memory.reward[:, None]
    if_kept = reward * log(_SURE) + (1 - reward) * log(1 - _SURE)
    if_dropped = reward * dropped.log() + (1 - reward) * (1 - dropped).log()
    both = zip((if_kept - if_dropped).T, if_dropped.T, strict=True)
    columns = [memory.per_token(gain) + memory.per_record(base)[:, None] for gain, base in both]
    return torch.stack(columns, dim=-1).logsumexp(dim=-1)


def evidence_losses(output: PolicyOutput, memory: Memory, config: ObjectiveConfig) -> dict[str, Tensor]:
    """Per-record values (B,); ``loss`` carries the gradient.

    loss = -log sum_i softmax(d)_i * likelihood_i + decay * mean_i d_i^2, with d = keep - drop, plus, for frames where
    frame samples exist, ``frame_weight`` times the cross-entropy from the frames that then hold the evidence.

    The softmax does not feel a shift of all scores. Without a gradient that holds their mean, Adam would make steps of
    what sums round there, other ones with another number of learners: hence ``ANCHOR`` * mean(d)^2.
    """
    scores, frames = output.token_scores, output.frame_scores
    prior = torch.log_softmax(scores.double(), dim=-1)
    believed = prior + log_likelihood(prior.detach().exp().cpu(), memory).to(prior.device)
    token_fit = -believed.logsumexp(dim=-1)
    where = believed.detach().softmax(dim=-1).unflatten(1, (memory.grid.frames, -1)).sum(dim=-1)
    frame_fit = -(where * torch.log_softmax(frames.double(), dim=-1)).sum(dim=-1)
    by_frames = memory.per_record(memory.by_frames.double()).to(frame_fit.device) > 0
    frame_fit = torch.where(by_frames, frame_fit, 0.0)
    decay = config.score_decay * scores.square().mean(dim=-1) + ANCHOR * scores.mean(dim=-1).square()
    return {
        "loss": (token_fit + config.frame_weight * frame_fit).to(scores) + decay,
        "token_loss": token_fit,
        "frame_loss": frame_fit,
        "score_std": scores.std(dim=-1, correction=0),
    }
