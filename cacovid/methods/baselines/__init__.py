"""Rivals of the policies that need no training, and the oracle: one file each, listed in the registry."""
