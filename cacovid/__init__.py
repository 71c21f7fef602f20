"""Contribution-aware token compression for Video-LLMs: the pure algorithm, without Ray."""
