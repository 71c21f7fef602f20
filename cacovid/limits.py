"""Bounds of one clip. Constants alone, so that the command line can show them without loading anything."""

EMBEDDED_LENGTH = 320  # positions that the embedded model was trained on: 8 frames and a question
MAX_FRAMES = 4096  # more do not fit into memory, and no supported model was trained on as many
MAX_PIXELS = 33_177_600  # of one frame, unless told: 8K UHD
