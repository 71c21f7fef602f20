"""Compression methods: which video tokens are retained, by a policy or by a rival."""
