"""Compression policies: networks that score video tokens by what they contribute to the answer."""

from cacovid.policy.base import CompressionPolicy, PolicyMetadata, PolicyOutput
from cacovid.policy.batch import PolicyBatch, collate, group_by_grid
from cacovid.policy.build import build_policy
from cacovid.policy.decoder_layer import NonCausalLayer

__all__ = [
    "CompressionPolicy",
    "NonCausalLayer",
    "PolicyBatch",
    "PolicyMetadata",
    "PolicyOutput",
    "build_policy",
    "collate",
    "group_by_grid",
]
