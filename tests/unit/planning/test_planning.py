"""The planner: real shapes on the meta device, counts against real runs of tiny models, memory arithmetic."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cacovid.config import (
    LearnersConfig,
    ModelConfig,
    ObjectiveConfig,
    PolicyConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
)
from cacovid.config_files import load_config
from cacovid.errors import UserError
from cacovid.models.loading import load_video_llm
from cacovid.planning.backbone import Backbone, known_backbones
from cacovid.planning.counts import cache_bytes_per_token, parameter_counts, policy_cost, prefill_flops, tower_flops
from cacovid.planning.gpus import GIB, USABLE, Gpu, fit
from cacovid.planning.local import local_shapes
from cacovid.planning.plan import ReplicaPlan, make_plan
from cacovid.policy.batch import collate
from cacovid.policy.build import build_policy
from cacovid.policy.decoder_layer import FirstLayer
from cacovid.records import TokenGrid
from tests.support.tiny_models import save_tiny_model

CONFIGS = Path(__file__).parents[3] / "configs"
# hidden size, layers, heads, key/value heads, tokens of a temporal step at 640x360, parameters of the language model
NUMBERS = {
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": (896, 24, 14, 2, 196, 0.494e9),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": (3584, 28, 28, 4, 196, 7.62e9),
    "Qwen/Qwen2.5-VL-3B-Instruct": (2048, 36, 16, 2, 299, 3.09e9),
    "Qwen/Qwen2.5-VL-7B-Instruct": (3584, 28, 28, 4, 299, 7.62e9),
    "Qwen/Qwen2.5-VL-72B-Instruct": (8192, 80, 64, 8, 299, 72.7e9),
    "Qwen/Qwen3-VL-4B-Instruct": (2560, 36, 32, 8, 220, 4.02e9),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": (2048, 24, 32, 32, 81, 1.81e9),
}


@pytest.fixture(scope="module", params=sorted(NUMBERS))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return known_backbones()[request.param]


def test_shipped_shapes_are_the_public_models(backbone: Backbone) -> None:
    model = backbone.meta_model()
    text = model.config.get_text_config()
    found = (text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads)
    *expected, language = NUMBERS[backbone.hub]
    assert [*found, backbone.video.token_grid(32, 640, 360).per_frame] == expected
    assert parameter_counts(model)["language model"] == pytest.approx(language, rel=0.005)
    assert all(weight.is_meta for weight in model.parameters())
    assert sum(parameter_counts(model).values()) == pytest.approx(backbone.published_parameters, rel=0.005)


def test_every_shipped_shape_is_tested() -> None:
    assert set(known_backbones()) == set(NUMBERS)


def test_steps_count_frames_in_pairs_where_the_model_merges_them() -> None:
    known = known_backbones()
    assert known["Qwen/Qwen2.5-VL-7B-Instruct"].video.token_grid(7, 640, 360).frames == 4
    assert known["llava-hf/llava-onevision-qwen2-7b-ov-hf"].video.token_grid(7, 640, 360).frames == 7


@pytest.mark.parametrize(
    ("frames", "width", "height"), [(8, 640, 360), (31, 1920, 1080), (64, 1920, 1080), (400, 1280, 720), (32, 160, 120)]
)
def test_dynamic_grids_are_those_of_qwens_own_processors(frames: int, width: int, height: int) -> None:
    processors = {
        "Qwen/Qwen2.5-VL-7B-Instruct": hf.Qwen2VLVideoProcessor(),
        "Qwen/Qwen3-VL-4B-Instruct": hf.Qwen3VLVideoProcessor(
            size={"shortest_edge": 4096, "longest_edge": 25_165_824}  # as its repository says
        ),
    }
    for hub, processor in processors.items():
        side = processor.patch_size * processor.merge_size
        clip = torch.empty(1, frames, 3, height, width, device="meta")
        resized = processor.resize(
            clip, processor.size, processor.resample, factor=side, temporal_factor=2, cap_pixels_per_frame=True
        )
        expected = TokenGrid(-(-frames // 2), resized.shape[-2] // side, resized.shape[-1] // side)
        assert known_backbones()[hub].video.token_grid(frames, width, height) == expected


def test_the_papers_token_count() -> None:
    """LLaVA-OneVision at 32 frames: 6,272 video tokens (algorithm notes)."""
    assert known_backbones()["llava-hf/llava-onevision-qwen2-7b-ov-hf"].video.token_grid(32, 1, 1).tokens == 6272


@pytest.fixture(scope="module", params=["llava_onevision", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = save_tiny_model(request.param, tmp_path_factory.mktemp(request.param))
    return ModelConfig(path=str(folder), device="cpu")


def counted(run: Any) -> int:
    # torch counts no operations for the CPU's fused attention kernel, so take the plain one.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_local_shapes_agree_with_the_loaded_model(tiny: ModelConfig) -> None:
    model, video = local_shapes(tiny, width=48, height=48)
    llm = load_video_llm(tiny)
    clip = llm.watch(np.zeros((tiny.num_frames, 48, 48, 3), np.uint8))
    assert video.token_grid(tiny.num_frames, 48, 48) == clip.grid
    assert parameter_counts(model) == parameter_counts(llm.model)
    assert sum(parameter_counts(model).values()) == sum(weight.numel() for weight in llm.model.parameters())


def test_prefill_operations_are_those_of_a_real_prefill(tiny: ModelConfig) -> None:
    model, _ = local_shapes(tiny, width=48, height=48)
    llm = load_video_llm(tiny)
    encoded = llm.encode_chat([{"role": "user", "content": [{"type": "text", "text": "what is the shape?"}]}], [])
    real = counted(lambda: llm.first_logits(encoded, torch.empty(1, 0, dtype=torch.long)))
    assert prefill_flops(model, encoded.length) == pytest.approx(real, rel=0.001)


def test_tower_operations_are_those_of_a_real_clip(tiny: ModelConfig) -> None:
    model, video = local_shapes(tiny, width=48, height=48)
    llm = load_video_llm(tiny)
    frames = np.zeros((tiny.num_frames, 48, 48, 3), np.uint8)
    real = counted(lambda: llm.watch(frames))
    # An upper bound: windowed attention (Qwen2.5-VL) is counted as if it saw the whole step.
    estimate = tower_flops(model, video, video.token_grid(tiny.num_frames, 48, 48))
    assert 0.97 * real <= estimate <= 1.25 * real


@pytest.mark.parametrize("kind", ["late", "paper"])
def test_policy_cost_is_that_of_a_real_policy(tiny: ModelConfig, kind: str) -> None:
    llm = load_video_llm(tiny)
    encoded = llm.encode(llm.watch(np.zeros((tiny.num_frames, 48, 48, 3), np.uint8)), "what is the shape?")
    layer = FirstLayer.from_language_model(llm.model.get_decoder())
    policy = build_policy(PolicyConfig(kind=kind), llm.hidden_size, layer, seed=0)
    batch = collate([encoded.policy_input()])
    model, _ = local_shapes(tiny, width=48, height=48)
    cost = policy_cost(PolicyConfig(kind=kind), model, encoded.grid, encoded.text_length, torch.float32)
    assert cost.parameters == sum(weight.numel() for weight in policy.parameters())
    assert cost.forward_flops == pytest.approx(counted(lambda: policy(batch)), rel=0.02)
    saved: dict[int, int] = {}
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy(batch)
    for weight in policy.parameters():
        saved.pop(weight.untyped_storage().data_ptr(), None)
    assert cost.saved_bytes == pytest.approx(sum(saved.values()), rel=0.15)


def test_key_value_bytes_of_a_token_are_those_of_a_real_cache(tiny: ModelConfig) -> None:
    llm = load_video_llm(tiny)
    ids = torch.zeros(1, 7, dtype=torch.long)
    with torch.no_grad():
        cache = llm.model(input_ids=ids, use_cache=True).past_key_values
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes_per_token(llm.model.config.get_text_config(), 4) * 7 == real


def small_plan_config(**changes: Any) -> TrainConfig:
    return TrainConfig(model=ModelConfig(path="llava-hf/llava-onevision-qwen2-0.5b-ov-hf", num_frames=32), **changes)


def test_zero_stages_divide_what_they_shard() -> None:
    parameters = make_plan(small_plan_config()).policy.parameters
    expected = {0: 16, 1: 2 + 2 + 12 / 4, 2: 2 + (2 + 12) / 4, 3: 16 / 4}
    for stage, per_parameter in expected.items():
        plan = make_plan(small_plan_config(learners=LearnersConfig(zero_stage=stage)))
        assert plan.learner.state_bytes[0] == 16 * parameters
        assert plan.learner.state_bytes[3] == int(per_parameter * parameters)


def test_rollouts_and_learning_are_added_up_over_a_step() -> None:
    plan = make_plan(small_plan_config())
    replica, policy = plan.replica, plan.policy
    assert plan.kept == 3 * 32
    assert plan.rollout_flops == 32 * (replica.encode_flops + policy.forward_flops + 8 * replica.kept_flops)
    assert plan.learning_flops == 3 * 8 * 48 * policy.forward_flops
    clipped = make_plan(small_plan_config(objective=ObjectiveConfig(kind="clipped")))
    assert clipped.learning_flops == 3 * 32 * policy.forward_flops
    fresh = make_plan(small_plan_config(objective=ObjectiveConfig(replay_bytes=0, replay_updates=3)))
    assert (fresh.learning_flops, fresh.replay_items) == (3 * 3 * 32 * policy.forward_flops, 0)
    assert (plan.replay_items, clipped.replay_items) == (2_000_000_000 // replica.item_bytes, 0)


def test_the_price_of_a_run_is_its_answers_times_their_mean_prefill() -> None:
    choices = SamplingConfig(group=8, tokens_per_frame=(1, 3), inner_iterations=2)
    plan = make_plan(small_plan_config(run=RunConfig(steps=30, items_per_step=5), sampling=choices))
    model = known_backbones()["llava-hf/llava-onevision-qwen2-0.5b-ov-hf"].meta_model()
    assert plan.answers == 30 * 5 * 8 * 2
    assert plan.answer_flops == (prefill_flops(model, plan.text + 32) + prefill_flops(model, plan.text + 96)) // 2


def test_memory_is_there_for_the_largest_rate_that_may_come() -> None:
    def planned(**sampling: Any) -> ReplicaPlan:
        clipped = ObjectiveConfig(kind="clipped")
        return make_plan(small_plan_config(sampling=SamplingConfig(**sampling), objective=clipped)).replica

    adaptive = planned(tokens_per_frame=(), rate=0.02, rate_max=0.12, inner_iterations=5)
    largest, first = planned(tokens_per_frame=(24,)), planned(tokens_per_frame=(4,))  # 12 and 2 % of 196
    assert (adaptive.scoring_bytes, adaptive.cache_bytes) == (largest.scoring_bytes, largest.cache_bytes)
    assert adaptive.kept_flops == first.kept_flops
    once = planned(tokens_per_frame=(), rate=0.02, inner_iterations=1)
    assert once.scoring_bytes == first.scoring_bytes < largest.scoring_bytes


def test_gpus_hold_what_fits_their_usable_memory() -> None:
    gpu = Gpu("test", memory=int(100 * GIB / USABLE) + 1)
    found = fit(gpu, actor_bytes=30 * GIB, learner_bytes=[120 * GIB, 60 * GIB, 40 * GIB])
    assert (found.actors, found.learners, found.shared_actors) == (3, 2, 0)
    assert fit(gpu, 30 * GIB, [35 * GIB]).shared_actors == 2
    assert fit(gpu, 101 * GIB, [101 * GIB]).learners is None


def test_replica_too_large_for_a_gpu_is_spread_over_as_few_as_hold_it() -> None:
    gpu = Gpu("test", memory=int(100 * GIB / USABLE) + 1)
    halves = [110 * GIB, 80 * GIB, 60 * GIB]
    assert fit(gpu, 200 * GIB, [GIB], halves).spread_over == 3
    assert fit(gpu, 99 * GIB, [GIB], halves).spread_over is None
    assert fit(gpu, 500 * GIB, [GIB], [250 * GIB]).spread_over is None
    plan = make_plan(TrainConfig(model=ModelConfig(path="Qwen/Qwen2.5-VL-72B-Instruct", num_frames=32)))
    weights = plan.replica.weight_bytes
    for count, fullest in enumerate(plan.replica.spread_bytes, start=2):
        assert weights / count <= fullest <= weights / count + 2 * 10**9  # a layer more
    assert {fit.gpu.name: fit.spread_over for fit in plan.fits}["H100 80 GB"] == 2


def test_a_model_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(UserError, match="does not exist"):
        make_plan(TrainConfig(model=ModelConfig(path="./nowhere")))


def test_a_model_without_processor_is_refused(tmp_path: Path) -> None:
    save_tiny_model("internvl", tmp_path)
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(UserError, match="cannot load the processor"):
        make_plan(TrainConfig(model=ModelConfig(path=str(tmp_path))))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configurations_can_be_planned(path: Path) -> None:
    config = load_config(path, [])
    plan = make_plan(config)
    assert plan.grid.frames >= 1
    assert 1 <= plan.kept <= plan.grid.tokens
    largest = plan.fits[-1]
    assert largest.actors >= 1
    assert largest.learners is not None
    assert isinstance(plan.policy.parameters, int)


def test_token_grids_follow_the_frame_size_only_where_the_model_does() -> None:
    known = known_backbones()
    tall = known["Qwen/Qwen3-VL-4B-Instruct"].video.token_grid(8, 320, 640)
    assert tall == TokenGrid(4, 20, 10)
    assert known["HuggingFaceTB/SmolVLM2-2.2B-Instruct"].video.token_grid(8, 320, 640) == TokenGrid(8, 9, 9)


def test_the_command_prints_a_plan_and_refuses_a_bad_size() -> None:
    from typer.testing import CliRunner

    from cluster.commands.main import app

    path = str(CONFIGS / "llava-onevision-7b-paper.toml")
    shown = CliRunner().invoke(app, ["plan", "--config", path], env={"COLUMNS": "120"})
    assert shown.exit_code == 0, shown.output
    assert "6,272 = 32 steps x 14x14" in shown.output
    assert "H100 80 GB" in shown.output
    refused = CliRunner().invoke(app, ["plan", "--frame-size", "0x5"])
    assert isinstance(refused.exception, UserError)
    assert "'0x5' is no size" in str(refused.exception)


def test_the_command_warns_of_actors_that_would_have_nothing_to_do() -> None:
    """Two steps of 16 questions are out at a time, 2 questions a task."""
    from typer.testing import CliRunner

    from cluster.commands.main import app

    def shown(*overrides: str) -> str:
        sixteen = ("run.items_per_step=16", *overrides)
        arguments = ["plan", *(word for each in sixteen for word in ("--set", each))]
        return " ".join(CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}).output.split())

    assert "at most 16 have a task at the same time" in shown()
    warning = "Of 17 rollout actors at most 16 have a task at the same time: lower actors.items_per_task"
    assert warning in shown("actors.count=17")
    assert warning not in shown("actors.count=16")
    assert "raise actors.parts_per_item, run.items_per_step or actors.staleness" in shown("actors.count=17")
    for remedy in ("items_per_task=1", "parts_per_item=2", "staleness=2"):
        assert "Of 17 rollout" not in shown("actors.count=17", f"actors.{remedy}")
    assert "at most 32 have a task at the same time" in shown("actors.parts_per_item=2")
