"""Long clips: watched chunk by chunk, their rows held in a file instead of in memory.

    frames of a chunk -> watch -> rows --append--> file ==mapped==> features (N, D) of the whole clip
                                  grid, placeholder -> VideoLLM.joined

Shape legend: N video tokens of the whole clip, n of a chunk, D width.
"""

import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import VideoFeatures


def watch_in_chunks(
    video_llm: VideoLLM,
    chunks: Iterable[NDArray[np.uint8]],
    *,
    fps: float,
    after: Callable[[VideoFeatures], object] = lambda seen: None,
) -> VideoFeatures:
    """As :meth:`VideoLLM.watch` of all ``chunks`` together, with the memory of one of them.

    The rows lie in a temporary file without a name, which goes with them; the system may drop its pages at any time.

    Args:
        chunks: (n, height, width, 3) uint8 frames, at least one chunk.
        fps: of the frames.
        after: called with each chunk's features once they are written; what it raises ends the watching.

    Raises:
        BadItem: As :meth:`VideoLLM.watch`.
        UserError: The model reads a clip as a whole.
        OSError: The folder of temporary files cannot be written to, or is full.
    """
    heads: list[VideoFeatures] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files: list[IO[bytes]] = []
        for chunk in chunks:
            seen = video_llm.watch(chunk, fps=fps)
            levels = (seen.features, *seen.deepstack)
            if not files:
                video_llm.joined([seen])  # refuses before the work
                names = [Path(folder) / str(level) for level in range(len(levels))]
                files = [stack.enter_context(name.open("wb")) for name in names]
            for file, rows in zip(files, levels, strict=True):
                file.write(rows.cpu().contiguous().view(torch.uint8).numpy().data)
            empty = seen.features[:0]
            heads.append(replace(seen, features=empty, deepstack=(empty,) * len(seen.deepstack)))
            after(seen)
        for file in files:
            file.flush()
        clip = video_llm.joined(heads)
        features, *deepstack = (_mapped(name, clip.grid.tokens, heads[0].features) for name in names)
    return replace(clip, features=features, deepstack=tuple(deepstack), stays=True)


def _mapped(path: Path, tokens: int, like: Tensor) -> Tensor:
    """(N, D) rows in ``path``, of the width and type of ``like``."""
    width = like.shape[1]
    return torch.from_file(str(path), shared=True, size=tokens * width, dtype=like.dtype).view(tokens, width)
