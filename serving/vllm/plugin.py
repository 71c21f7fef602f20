"""What vLLM calls in each of its processes (entry point ``vllm.general_plugins``)."""

from serving.vllm.names import ARCHITECTURE


def register() -> None:
    """Make the compressed Video-LLM known; its module is imported only where a model of that name is loaded."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "serving.vllm.model:CompressedVideoLLM")
