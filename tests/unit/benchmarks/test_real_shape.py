"""The benchmark of real shapes: in miniature on the CPU, and as it is meant where there is a GPU."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from benchmarks.real_shape.__main__ import app, markdown
from benchmarks.real_shape.mixed_precision import MixedPrecisionAdamW
from benchmarks.real_shape.random_model import random_llava_onevision, shape_of
from benchmarks.real_shape.stages import Stage, Stopwatch, learner_stage, replica_stages
from cacovid.config import ModelConfig, OptimizerConfig, TrainConfig
from cacovid.config_files import load_config, with_overrides
from cacovid.errors import UserError
from cacovid.policy.build import policy_for
from cacovid.records import TokenGrid

CONFIGS = Path(__file__).parents[3] / "configs"
PAPER = CONFIGS / "llava-onevision-7b-paper.toml"
HUB = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
SMALL = {"model.num_frames": 4, "model.dtype": "float32", "sampling.group": 4, "run.items_per_step": 3}


def on_cpu(path: Path) -> TrainConfig:
    return with_overrides(load_config(path), {**SMALL, "model.device": "cpu", "objective.replay_batch": 3})


@pytest.mark.parametrize("name", ["llava-onevision-7b-paper.toml", "llava-onevision-7b.toml"])
def test_stages_count_what_they_read_and_the_policy_learns(name: str) -> None:
    config = on_cpu(CONFIGS / name)
    llm = random_llava_onevision(shape_of(HUB, reduced=True), config.model)
    policy, watch = policy_for(llm, config).eval(), Stopwatch(llm.device, repeats=1)
    stages, record = replica_stages(llm, policy, config, (1.0, 0.25), watch)
    text, video = record.input.text.shape[0], record.input.grid.tokens
    assert video == 4 * 4 * 4
    assert [stage.tokens for stage in stages[:4]] == [video, text + video, text + video, text + video // 4]
    kept = [scored.combinations.kept for scored in record.iterations]
    assert stages[-1].tokens == sum(len(rows) * (text + rows.shape[1]) for rows in kept)
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    learner = learner_stage(policy, record, config, 3, watch)
    assert learner.tokens == 3 * (text + video)
    assert any(not torch.equal(before[name], weight) for name, weight in policy.state_dict().items())
    assert all(stage.seconds > 0 and stage.peak_bytes is None for stage in [*stages, learner])


def test_the_command_prints_every_stage_as_markdown() -> None:
    sets = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    arguments = [str(PAPER), "--reduced", "--repeats", "1", *sets, "--set", "model.device=cpu"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert f"{HUB} in miniature" in shown.output
    rows = [line for line in shown.output.splitlines() if re.fullmatch(r"\| .*? \| [\d,.]+ \| [\d,-]+ \| - \|", line)]
    names = ("encode", "compress", "prefill, 100%", "prefill, 25%", "prefill, 10%", "draw", "rollout", "learner step")
    assert [any(row.startswith(f"| {name}") for row in rows) for name in names] == [True] * len(names)


def test_other_families_are_refused_with_the_shapes_there_are() -> None:
    with pytest.raises(UserError, match=r"llava-onevision-qwen2-0\.5b.*llava-onevision-qwen2-7b"):
        shape_of("Qwen/Qwen2.5-VL-3B-Instruct")


def test_real_frames_give_the_real_number_of_tokens() -> None:
    """The true image and patch sizes with small layers: 27x27 patches, pooled to 14x14."""
    numbers = shape_of(HUB, reduced=True)
    numbers["vision_config"]["image_size"] = shape_of(HUB)["vision_config"]["image_size"]
    llm = random_llava_onevision(numbers, ModelConfig(device="cpu"))
    encoded = llm.encode(llm.watch(np.zeros((2, 90, 160, 3), np.uint8)), "what color is it?")
    assert encoded.grid == TokenGrid(2, 14, 14)
    assert llm.first_logits(encoded, torch.arange(392)[None]).isfinite().all()


def test_random_replicas_depend_on_the_seed_alone() -> None:
    numbers, config = shape_of(HUB, reduced=True), ModelConfig(device="cpu")
    before = torch.random.get_rng_state()
    first, again, other = (random_llava_onevision(numbers, config, seed).fingerprint for seed in (0, 0, 1))
    assert (first == again, first == other) == (True, False)
    assert torch.equal(torch.random.get_rng_state(), before)


def gradients(module: nn.Module, step: int) -> None:
    for number, weight in enumerate(module.parameters()):
        weight.grad = torch.full_like(weight, 0.1 * (step + 1) * (-1) ** number)


def test_float32_steps_are_those_of_plain_adamw() -> None:
    torch.manual_seed(0)
    ours, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    plain.load_state_dict(ours.state_dict())
    config = OptimizerConfig(lr=1e-2, grad_norm=0.1)
    mixed = MixedPrecisionAdamW(ours, config)
    adamw = torch.optim.AdamW(plain.parameters(), lr=config.lr, eps=config.eps, weight_decay=config.weight_decay)
    for step in range(3):
        gradients(ours, step), gradients(plain, step)
        mixed.step()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), config.grad_norm)
        adamw.step()
        assert all(weight.grad is None for weight in ours.parameters())
    assert torch.equal(ours.weight, plain.weight)


def test_steps_below_bfloat16s_resolution_add_up_in_the_masters() -> None:
    module = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(module.weight)
    mixed = MixedPrecisionAdamW(module, OptimizerConfig(lr=1e-3, weight_decay=0.0))
    for step in range(8):  # the next number below 1 is 0.004 away
        module.weight.grad = torch.ones_like(module.weight)
        mixed.step()
        assert step > 0 or module.weight.item() == 1.0
    assert module.weight.item() < 1.0


@pytest.mark.gpu
def test_a_7b_shape_rolls_out_and_learns_on_one_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """LLaVA-OneVision-7B's shape, 32 frames, the paper's policy and objective; prints the figures."""
    config = with_overrides(load_config(PAPER), {"sampling.inner_iterations": 1, "model.device": "cuda"})
    llm = random_llava_onevision(shape_of(HUB), config.model)
    policy, watch = policy_for(llm, config).to(llm.device).eval(), Stopwatch(llm.device, repeats=3)
    stages, record = replica_stages(llm, policy, config, (1.0, 0.25), watch)
    del llm
    torch.cuda.empty_cache()
    stages.append(learner_stage(policy, record, config, 4, watch))
    with capsys.disabled():
        typer.echo(f"\n{markdown(stages)}")
    costs = {stage.name: stage for stage in stages}
    assert record.input.grid == TokenGrid(32, 14, 14)
    whole, quarter = costs["prefill, 100% of the video tokens"], costs["prefill, 25% of the video tokens"]
    assert quarter.seconds < whole.seconds / 2
    assert costs["compress, policy 'paper' in bfloat16"].seconds < whole.seconds / 4
    assert all(fits(stage) for stage in stages)


def fits(stage: Stage) -> bool:
    """Measured, and within an 80 GB card."""
    return stage.peak_bytes is not None and 0 < stage.peak_bytes < 75 * 1024**3
