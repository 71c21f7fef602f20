"""For the site-packages of an environment: mends torchvision in every process, as vLLM's own are none of ours.

See cacovid.models.torchvision_mend for what is broken and why.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class MendFirst(MetaPathFinder):
    """Mends as soon as somebody imports torchvision; Python starts as fast as ever."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import cacovid.models  # noqa: F401
        return None


sys.meta_path.insert(0, MendFirst())
