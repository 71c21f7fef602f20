"""The frozen model's answer from retained tokens, and what it is worth."""
