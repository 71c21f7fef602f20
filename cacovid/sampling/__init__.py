"""Online combination space sampling: token combinations whose answers are informative."""
