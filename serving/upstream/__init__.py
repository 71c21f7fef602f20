"""Answers from somebody else's vLLM server: this service reads, compresses and speaks, the server draws the tokens."""
