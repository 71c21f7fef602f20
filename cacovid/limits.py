"""Bounds of one clip. Constants alone, so that the command line can show them without loading anything."""

# Positions that the embedded models were trained on: 8 or 64 frames and a question.
EMBEDDED_LENGTHS = {"embedded": 320, "embedded-2": 2_340}
MAX_FRAMES = 4096  # more do not fit into memory, and no supported model was trained on as many
MAX_PIXELS = 33_177_600  # of one frame, unless told: 8K UHD
