"""What vLLM calls in each of its processes (entry point ``vllm.general_plugins``)."""

import multiprocessing
import os
import threading
from multiprocessing.process import BaseProcess

from serving.vllm.names import ARCHITECTURE, REPLICA


def register() -> None:
    """Make the compressed Video-LLM known; its module is imported only where a model of that name is loaded."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "serving.vllm.model:CompressedVideoLLM")
    parent = multiprocessing.parent_process()
    if parent is not None and parent.name == REPLICA:  # other people's vLLM on this machine is left as it is
        multiprocessing.current_process().name = REPLICA  # its workers are children of this one
        threading.Thread(target=_end_with, args=(parent,), name="cacovid-parent", daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    """End this process when the one that started it is gone: by itself vLLM's core outlives a killed replica."""
    parent.join()
    os._exit(1)
