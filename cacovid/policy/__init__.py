"""Compression policies: networks that score video tokens by what they contribute to the answer."""

# Every network enters itself by its kind: whoever imports any part of this package can build and load all of them.
from cacovid.policy.late import LatePolicy
from cacovid.policy.paper import PaperPolicy

__all__ = ["LatePolicy", "PaperPolicy"]
