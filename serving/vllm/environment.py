"""What vLLM is told by environment variables, having no arguments for it."""

import math
import os

from serving.config import REPLICA_GPU, EngineConfig


def set_environment(config: EngineConfig, cuda: bool) -> None:
    """Set what vLLM reads from the environment of this process, whose children its own processes are.

    To be called before vLLM is imported.
    """
    wanted = {
        "VLLM_NO_USAGE_STATS": "1",  # nothing is sent home
        "VLLM_CONFIGURE_LOGGING": "0",  # doing so it would close Serve's handlers; its warnings come all the same
        "VLLM_ENGINE_READY_TIMEOUT_S": str(math.ceil(config.vllm.start_s)),
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # whose draws serving.vllm.draws makes
    }
    if config.vllm.spans_nodes:
        wanted["VLLM_RAY_PER_WORKER_GPUS"] = str(1 - REPLICA_GPU)
    if not cuda:
        wanted |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(config.threads)}
    os.environ.update(wanted)
