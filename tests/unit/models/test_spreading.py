"""A model over several devices: which part lies where, that tensors meet on one device, and that no answer changes."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import attach_align_device_hook_on_blocks
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from cacovid.config import ActorsConfig, ModelConfig, PolicyConfig, TrainConfig
from cacovid.errors import UserError
from cacovid.models import loading
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded
from cacovid.models.loading import load_video_llm
from cacovid.models.spreading import _balanced, device_map, parameters_by_device
from cacovid.policy.build import policy_for
from tests.support.tiny_models import BUILDERS, save_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llm(folder: Path) -> VideoLLM:
    return load_video_llm(ModelConfig(path=str(folder), device="cpu", max_new_tokens=3))


@pytest.mark.parametrize("count", [2, 3])
def test_every_part_of_the_model_has_its_place(llm: VideoLLM, count: int) -> None:
    model = llm.model
    places = device_map(model, count)
    modules = dict(model.named_modules())

    def places_of(part: torch.nn.Module) -> set[int]:
        names = [name for name, module in model.named_modules() if module is part]
        return {place for name, place in places.items() for each in names if f"{name}.".startswith(f"{each}.")}

    covered = [name for name, _ in model.named_parameters() if sum(f"{name}.".startswith(f"{p}.") for p in places) == 1]
    assert covered == [name for name, _ in model.named_parameters()]
    assert {name for name in places if name not in modules} <= {name for name, _ in model.named_parameters()}
    decoder = model.get_decoder()
    layers = [places_of(layer) for layer in decoder.layers]
    assert layers == sorted(layers, key=min)
    assert all(len(place) == 1 for place in layers)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert places_of(model.get_input_embeddings()) == {0}
    assert places_of(decoder.norm) == {count - 1}
    assert places_of(model.get_output_embeddings()) == {0 if tied else count - 1}
    tower = [name for name in modules if name.endswith(("vision_tower", "visual", "vision_model"))]
    assert tower
    assert all(places_of(modules[name]) == {0} for name in tower)
    assert sum(parameters_by_device(model, places)) == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("first", "layers", "last", "count", "expected"),
    [
        (0, [10] * 8, 0, 4, [0, 0, 1, 1, 2, 2, 3, 3]),
        (20, [10] * 8, 0, 2, [0] * 3 + [1] * 5),
        (10, [10] * 8, 10, 2, [0] * 4 + [1] * 4),
        (100, [10] * 4, 0, 3, [1, 1, 2, 2]),  # a tower that is larger than a share has a device of its own
        (0, [10] * 4, 100, 2, [0] * 4),
        (0, [10], 0, 3, [1]),
    ],
)
def test_layers_are_shared_out_evenly(
    first: int, layers: list[int], last: int, count: int, expected: list[int]
) -> None:
    assert _balanced(first, layers, last, count) == expected


def encoded(llm: VideoLLM) -> Encoded:
    frames = np.random.default_rng(0).integers(0, 256, (4, 48, 48, 3), np.uint8)
    return llm.encode(llm.watch(frames), "what is the colour?")


KEEP = torch.tensor([[0, 3, 5], [1, 2, 7]])


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_tensors_of_two_devices_never_meet(llm: VideoLLM) -> None:
    """The prompt's forward pass with tensors that have a device but no values; torch checks their devices."""
    model, seen = copy.deepcopy(llm.model), encoded(llm)
    places = device_map(model, 2)

    def device_of(name: str) -> int:
        return next(place for module, place in places.items() if f"{name}.".startswith(f"{module}."))

    def without_values(tensor: torch.Tensor, device: int = 0) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=f"cpu:{device}")

    with FakeTensorMode():
        for path, module in model.named_modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                moved = without_values(weight, device_of(f"{path}.{name}".lstrip(".")))
                setattr(module, name, torch.nn.Parameter(moved, requires_grad=False))
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, without_values(buffer, device_of(f"{path}.{name}".lstrip("."))))
        fields = {field.name: getattr(seen, field.name) for field in dataclasses.fields(seen)}
        prompt = llm.pack(
            dataclasses.replace(seen, **tree_map_only(torch.Tensor, without_values, fields)), without_values(KEEP)
        )
        del prompt["mm_encoder_outputs"]  # its rows are counted, on the first device; here are none to count
        with pytest.raises(RuntimeError, match="found at least two devices"):
            model(**prompt, use_cache=False)
        attach_align_device_hook_on_blocks(
            model,
            execution_device={name: torch.device("cpu", place) for name, place in {"": 0, **places}.items()},
            offload=dict.fromkeys(places, False),
            skip_keys=model._skip_keys_device_placement,
            tied_params_map={},
        )
        assert model(**prompt, use_cache=False).logits.device == torch.device("cpu:0")


def answers(llm: VideoLLM) -> tuple[torch.Tensor, tuple[tuple[int, ...], ...]]:
    seen = encoded(llm)
    return llm.first_logits(seen, KEEP), llm.answer(seen, KEEP).tokens


def test_spread_model_answers_as_a_whole_one(llm: VideoLLM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded part by part, and with the hooks that move tensors between devices around every part."""
    monkeypatch.setattr(loading, "resolve_devices", lambda name: [CPU, CPU])
    spread = load_video_llm(ModelConfig(path=str(folder), device="spread", max_new_tokens=3))
    places = dict.fromkeys(device_map(spread.model, 2), "cpu")
    dispatch_model(spread.model, places, force_hooks=True, skip_keys=spread.model._skip_keys_device_placement)
    assert hasattr(spread.model.get_decoder().layers[0], "_hf_hook")
    logits, tokens = answers(llm)
    spread_logits, spread_tokens = answers(spread)
    assert torch.equal(logits, spread_logits)
    assert tokens == spread_tokens
    assert spread.fingerprint == llm.fingerprint
    config = TrainConfig(policy=PolicyConfig(kind="paper"))
    states = [policy_for(each, config).state_dict() for each in (llm, spread)]
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
    assert not any(hasattr(module, "_hf_hook") for module in policy_for(spread, config).modules())


def test_spreading_needs_gpus_and_whole_ones() -> None:
    with pytest.raises(UserError, match=r"model\.device='spread'.*torch sees no GPU"):
        loading.resolve_devices("spread")
    with pytest.raises(ValueError, match=r"actors\.gpus=1\.5 is no whole number"):
        ActorsConfig(gpus=1.5)
    with pytest.raises(ValueError, match=r"model\.device='cuda:1' is one device, not actors\.gpus=2"):
        TrainConfig(actors=ActorsConfig(gpus=2), model=ModelConfig(device="cuda:1"))


def test_actors_of_several_gpus_spread_their_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TrainConfig(actors=ActorsConfig(gpus=4)).replica_model().device == "spread"
    assert TrainConfig(actors=ActorsConfig(gpus=0.5)).replica_model() == ModelConfig()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert loading.resolve_devices("spread") == [torch.device("cuda", index) for index in range(3)]
