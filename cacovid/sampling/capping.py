"""Cap probabilities row by row and give the excess to the rest."""

import torch
from torch import Tensor

_FLOOR = 1e-12  # keeps a share for entries that underflowed to 0


def cap_probabilities(probabilities: Tensor, cap: float) -> Tensor:
    """The fixed point of "cap, hand the excess to the uncapped in proportion, repeat", in closed form.

    With the entries sorted in descending order, the fixed point caps the first j and scales the rest
    by (1 - j*cap) / (their sum), for the smallest j that pushes none of them over the cap.

    Args:
        probabilities: (..., n) rows that sum to 1.
        cap: largest entry allowed; a cap below 1/n is raised to 1/n, which means uniform rows.

    Returns:
        (..., n) float64 rows that sum to 1, no entry above the cap.
    """
    count = probabilities.shape[-1]
    cap = max(cap, 1 / count)
    floored = probabilities.double().clamp_min(_FLOOR)
    floored = floored / floored.sum(dim=-1, keepdim=True)
    ordered = floored.sort(dim=-1, descending=True).values
    tail = ordered.flip(-1).cumsum(dim=-1).flip(-1)  # (..., n) sum of entries j and after
    left = 1 - cap * torch.arange(count, dtype=torch.float64, device=ordered.device)
    scale = left / tail  # (..., n) by the number j of capped entries
    fits = (ordered * scale <= cap * (1 + 1e-9)) & (left > 0)
    fits[..., -1] |= ~fits.any(dim=-1)  # every entry at the cap, up to rounding
    capped = fits.int().argmax(dim=-1, keepdim=True)  # (..., 1) smallest j that fits
    result = (floored * scale.gather(-1, capped)).clamp_max(cap)
    return result / result.sum(dim=-1, keepdim=True)
