"""The second embedded world: 64 frames, five problem types, evidence in two to four pieces."""
