"""Lets torchvision be imported where its compiled operators cannot load.

The wheel of torchvision on PyPI is built for CUDA. Beside a CPU build of torch its operators cannot be
loaded and ``import torchvision`` fails ("operator torchvision::nms does not exist"), although the Python
transforms, all that the video processors of transformers use, would work. Declaring the schemas of the
two operators that torchvision registers meta kernels for is enough; calling them still fails, loudly.
"""

import importlib.util
from pathlib import Path

import torch

# A library's schemas live as long as the object that defined them.
_declared: list[torch.library.Library] = []


def mend_torchvision() -> None:
    """Declare torchvision's operator schemas if, and only if, its compiled operators cannot load."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    if hasattr(torch.ops.torchvision, "nms") or _operators_load(Path(spec.origin).parent):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def _operators_load(package: Path) -> bool:
    """Whether the compiled operators in torchvision's folder fit this torch (they stay loaded if so)."""
    for path in sorted(package.glob("_C*")):
        try:
            torch.ops.load_library(str(path))
        except OSError:
            return False
        return True
    return False
