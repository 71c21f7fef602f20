"""What engine.kind=vllm asks of configuration, memory and placement; vLLM itself is tested in tests/vllm."""

from importlib.util import find_spec

import pytest
from pydantic import ValidationError

from cacovid.errors import UserError
from serving.application import check
from serving.config import GIB, REPLICA_GPU, ServiceConfig, VllmConfig
from serving.replicas.deployments import _engine_options
from serving.vllm.memory import compare_share


def config(**engine: object) -> ServiceConfig:
    return ServiceConfig.model_validate({"engine": {"kind": "vllm"} | engine})


def test_the_default_stays_transformers():
    assert ServiceConfig().engine.kind == "transformers"


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is there")
def test_vllm_that_is_not_installed_is_told_before_anything_starts():
    with pytest.raises(UserError, match=r"cacovid\[vllm\]"):
        check(config())


def test_a_share_that_is_not_free_is_told_with_the_largest_that_is():
    compare_share(60 * GIB, 80 * GIB, VllmConfig(gpu_memory_utilization=0.75))
    with pytest.raises(UserError, match=r"gpu_memory_utilization=0\.75 asks for 60\.0 of 80\.0 GiB .* at most 0\.68"):
        compare_share(55 * GIB, 80 * GIB, VllmConfig(gpu_memory_utilization=0.75))


def test_tensor_parallelism_needs_as_many_gpus():
    with pytest.raises(ValidationError, match=r"tensor_parallel_size=2 needs engine\.gpus=2, not 1"):
        config(gpus=1, vllm={"tensor_parallel_size": 2})


def test_one_node_holds_all_gpus_of_a_replica():
    options = _engine_options(config(gpus=2, vllm={"tensor_parallel_size": 2}))
    assert options["ray_actor_options"]["num_gpus"] == 2
    assert "placement_group_bundles" not in options


def test_on_several_nodes_the_replica_shares_its_first_workers_gpu():
    options = _engine_options(config(gpus=4, vllm={"tensor_parallel_size": 4, "placement": "SPREAD"}))
    assert options["ray_actor_options"]["num_gpus"] == REPLICA_GPU
    assert [bundle["GPU"] for bundle in options["placement_group_bundles"]] == [1.0] * 4
    assert options["placement_group_strategy"] == "SPREAD"
