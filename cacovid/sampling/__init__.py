"""Online combination space sampling: token combinations whose answers are informative."""

from cacovid.sampling.adaptive_rate import adapt_rate
from cacovid.sampling.ocss import mode_counts, sample_combinations
from cacovid.sampling.rates import rate_of, step_tokens, tokens_at

__all__ = ["adapt_rate", "mode_counts", "rate_of", "sample_combinations", "step_tokens", "tokens_at"]
