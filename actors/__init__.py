"""Rollout actors: frozen Video-LLM replicas that score token combinations."""
