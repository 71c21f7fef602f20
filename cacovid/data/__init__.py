"""Question tables, video decoding, prompts and the embedding cache."""
