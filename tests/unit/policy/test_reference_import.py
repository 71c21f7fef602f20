"""The reference's published weights become a policy that computes what theirs does."""

import copy
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cacovid.compressor import Compressor
from cacovid.config import ModelConfig, PolicyConfig, SelectionConfig
from cacovid.errors import UserError
from cacovid.models.adapter import VideoLLM
from cacovid.models.loading import load_video_llm
from cacovid.planning.backbone import known_backbones
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.build import build_policy
from cacovid.policy.decoder_layer import FirstLayer
from cacovid.policy.files import read_tensors
from cacovid.policy.reference_import import (
    PREFIX,
    import_reference,
    read_reference,
    reference_metadata,
    reference_names,
)
from cluster.commands.main import main
from tests.support.tiny_models import save_tiny_model

State = dict[str, Tensor]


def head(width: int, outputs: int, first: int = 0) -> nn.Sequential:
    """The reference's heads: D, D/2, D/4, D/8, D/16, outputs; ``first`` other modules stand before them."""
    widths = [width, width // 2, width // 4, width // 8, width // 16, outputs]
    modules: list[nn.Module] = [nn.Identity() for _ in range(first)]
    for wide, narrow in itertools.pairwise(widths):
        modules += [nn.Linear(wide, narrow), nn.SiLU()]
    return nn.Sequential(*modules[:-1])


class ReferencePolicy(nn.Module):
    """Modules of the published names, put together by hand; eager attention with a causal mask."""

    def __init__(self, llm: VideoLLM, first: int = 0) -> None:
        super().__init__()
        decoder, width = llm.model.get_decoder(), llm.hidden_size
        self.layers = nn.ModuleList([type(decoder.layers[0])(copy.deepcopy(decoder.config), 0)])
        self.layernorm = type(decoder.norm)(width, eps=1e-6)
        self.token_compress = head(width, 2, first)
        self.frame_compress = head(width, 2, first)
        self.mode_selection = head(width, 3, first)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.3)

    def logits(self, llm: VideoLLM, prompt: str, frames: np.ndarray) -> tuple[Tensor, Tensor]:
        encoded = llm.encode(llm.watch(frames), prompt)
        text_model = llm.model.get_decoder()
        embeds = llm.model.get_input_embeddings()(encoded.input_ids)
        embeds[encoded.video_columns] = encoded.features
        embeds[encoded.pinned_columns] = encoded.pinned
        rotation = text_model.rotary_emb(embeds[None], torch.arange(encoded.length)[None])
        self.layers[0].self_attn.config._attn_implementation = "eager"
        causal = torch.full((1, 1, encoded.length, encoded.length), -torch.inf).triu(1)
        hidden = self.layers[0](embeds[None], attention_mask=causal, position_embeddings=rotation)[0]
        video = hidden[encoded.video_columns]
        frame_means = video.view(encoded.grid.frames, -1, video.shape[1]).mean(dim=1)
        return self.token_compress(self.layernorm(video)), self.frame_compress(self.layernorm(frame_means))

    def checkpoint(self) -> State:
        """As published: below the prefix, beside the Video-LLM's own tensors."""
        state = {f"{PREFIX}{name}": tensor.clone() for name, tensor in self.state_dict().items()}
        return state | {"language_model.lm_head.weight": torch.zeros(3, 2), "image_newline": torch.zeros(4)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model("llava_onevision", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> VideoLLM:
    return load_video_llm(ModelConfig(path=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def published(llm: VideoLLM) -> State:
    torch.manual_seed(1)
    return ReferencePolicy(llm).checkpoint()


def imported(llm: VideoLLM, checkpoint: Path) -> CompressionPolicy:
    return import_reference(read_reference(checkpoint), llm, reference_metadata(llm, 8))


@torch.no_grad()
@pytest.mark.parametrize("first", [0, 1])
def test_imported_policy_computes_the_references_logits(llm: VideoLLM, tmp_path: Path, first: int) -> None:
    torch.manual_seed(first)
    reference = ReferencePolicy(llm, first)
    save_file(reference.checkpoint(), tmp_path / "model.safetensors")
    frames = np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), dtype=np.uint8)
    prompt = "what is the colour of the circle?"
    output = imported(llm, tmp_path).logits([llm.encode(llm.watch(frames), prompt).policy_input()])
    tokens, steps = reference.logits(llm, prompt, frames)
    assert tokens.std() > 0.05
    torch.testing.assert_close(output.token_logits[0], tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.frame_logits[0], steps, atol=1e-5, rtol=1e-5)


def test_names_and_shapes_at_7b_size() -> None:
    """What a checkpoint of the paper's main model must hold."""
    model = known_backbones()["llava-hf/llava-onevision-qwen2-7b-ov-hf"].meta_model()
    with torch.device("meta"):
        layer = FirstLayer.from_language_model(model.get_decoder())
        own = build_policy(PolicyConfig(kind="paper"), 3584, layer, seed=0).state_dict()
    shapes = {name: tuple(own[ours].shape) for ours, name in reference_names(own, ()).items()}
    assert len(shapes) == len(own) == 12 + 1 + 20
    assert shapes["layers.0.self_attn.k_proj.bias"] == (512,)
    assert shapes["layers.0.mlp.gate_proj.weight"] == (18944, 3584)
    assert shapes["layernorm.weight"] == (3584,)
    for name in ("token_compress", "frame_compress"):
        assert shapes[f"{name}.0.weight"] == (1792, 3584)
        assert shapes[f"{name}.8.weight"] == (2, 224)


def test_half_precision_weights_become_float32(llm: VideoLLM, published: State, tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in published.items()}
    save_file(half, tmp_path / "model.safetensors")
    policy = imported(llm, tmp_path)
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}
    assert torch.equal(policy.norm.weight, half[f"{PREFIX}layernorm.weight"].float())
    assert not policy.training


def split(state: State) -> tuple[State, State]:
    names = sorted(state)
    return tuple({name: state[name] for name in names[start::2]} for start in (0, 1))  # type: ignore[return-value]


def write_sharded(folder: Path, state: State, pattern: str, index: str, save: object) -> Path:
    weight_map = {}
    for number, shard in enumerate(split(state)):
        save(shard, folder / pattern.format(number))
        weight_map |= dict.fromkeys(shard, pattern.format(number))
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder / index


@pytest.mark.parametrize(
    "form", ["folder", "lone file", "safetensors", "bin", "pt", "index", "bin index", "folder with index"]
)
def test_every_form_of_checkpoint_reads_the_same(published: State, tmp_path: Path, form: str) -> None:
    path = tmp_path
    if form in ("folder", "safetensors"):
        save_file(published, tmp_path / "model.safetensors")
        path = tmp_path / "model.safetensors" if form == "safetensors" else tmp_path
    elif form == "lone file":
        save_file(published, tmp_path / "policy.safetensors")
    elif form in ("bin", "pt"):
        path = tmp_path / f"weights.{form}"
        torch.save(published, path)
    elif form == "bin index":
        path = write_sharded(tmp_path, published, "part-{}.bin", "pytorch_model.bin.index.json", torch.save)
    else:
        index = write_sharded(tmp_path, published, "part-{}.safetensors", "model.safetensors.index.json", save_file)
        path = index if form == "index" else tmp_path
    state, others = read_tensors(path, PREFIX)
    assert others == 2
    assert {f"{PREFIX}{name}" for name in state} == {name for name in published if name.startswith(PREFIX)}
    assert all(torch.equal(tensor, published[f"{PREFIX}{name}"]) for name, tensor in state.items())


def without(*names: str) -> object:
    return lambda state: {name: tensor for name, tensor in state.items() if name.removeprefix(PREFIX) not in names}


def with_tensor(name: str, tensor: Tensor) -> object:
    return lambda state: {**state, f"{PREFIX}{name}": tensor}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("token_compress.4.bias"), r"missing: token_compress\.4\.bias\)"),
        (without("layernorm.weight"), r"missing: layernorm\.weight"),
        (
            without("frame_compress.2.weight", "frame_compress.2.bias"),
            r"missing: frame_compress\.2\.bias, frame_compress\.2\.weight\)",
        ),
        (with_tensor("layers.0.self_attn.q_norm.weight", torch.ones(8)), r"unexpected: layers\.0\.self_attn\.q_norm"),
        (with_tensor("layers.1.mlp.up_proj.weight", torch.ones(8)), r"unexpected: layers\.1\.mlp"),
        (with_tensor("token_compress.10.weight", torch.ones(2, 2)), r"unexpected: token_compress\.10\.weight"),
        (with_tensor("surprise", torch.ones(1)), "unexpected: surprise"),
        (with_tensor("token_compress.8.bias", torch.ones(3)), r"token_compress\.8\.bias is 3, needed 2: .*--model"),
        (with_tensor("layernorm.weight", torch.ones(32, dtype=torch.int8)), r"layernorm\.weight is 32 of int8"),
        (lambda state: {name: t for name, t in state.items() if not name.startswith(PREFIX)}, "none of its 2 tensors"),
    ],
)
def test_wrong_parameters_are_one_line_that_names_them(
    llm: VideoLLM, published: State, tmp_path: Path, change: object, message: str
) -> None:
    save_file(change(published), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        imported(llm, tmp_path)
    assert "\n" not in str(caught.value)


def test_many_missing_parameters_are_counted(llm: VideoLLM, published: State, tmp_path: Path) -> None:
    names = [f"token_compress.{number}.{kind}" for number in (0, 2, 4, 6) for kind in ("weight", "bias")]
    save_file(without(*names)(published), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="and 2 more"):
        imported(llm, tmp_path)


class Intruder:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("intruded",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "does not exist"),
        ("notes.txt", b"hello", "no kind of checkpoint"),
        ("broken.safetensors", b"hello", "cannot be read"),
        ("broken.bin", b"hello", "cannot be read"),
        ("empty.pt", b"", "cannot be read"),
        ("index.json", b'{"other": 1}', "no index of shards"),
        ("index.json", b"{", "no index of shards"),
        ("index.json", json.dumps({"weight_map": {f"{PREFIX}x": "gone.safetensors"}}).encode(), "'gone.safetensors'"),
        ("index.json", json.dumps({"weight_map": {f"{PREFIX}x": "../up.bin"}}).encode(), r"'\.\./up\.bin'"),
    ],
)
def test_unreadable_checkpoints_are_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_reference(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(Intruder(), "plain tensors"), ({"state": {}}, "no state dict"), ([1], "no state dict")]
)
def test_pickles_of_anything_but_tensors_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=message):
        read_reference(tmp_path / "weights.pt")
    assert not (tmp_path / "intruded").exists()


def test_folders_without_one_clear_file_are_refused(published: State, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights found: none"):
        read_reference(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        save_file(published, tmp_path / name)
    with pytest.raises(UserError, match=r"a\.safetensors, b\.safetensors\): name one file"):
        read_reference(tmp_path)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["cacovid", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_writes_a_policy_that_compresses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, published: State, tmp_path: Path
) -> None:
    save_file(published, tmp_path / "published.safetensors")
    out = tmp_path / "policy"
    arguments = ("policy", "import", tmp_path / "published.safetensors", "--model", folder, "--out", out)
    assert run(monkeypatch, *arguments, "--frames", 4) == 0
    printed = capsys.readouterr().out
    assert "ignored 10 tensors of mode_selection.*" in printed
    assert "left out 2 tensors" in printed
    assert "sees no question that follows the video" in printed
    compressor = Compressor.from_pretrained(out)
    metadata = compressor.policy.metadata
    assert metadata.model_fingerprint == compressor.video_llm.fingerprint
    assert (metadata.model_type, metadata.num_frames) == ("llava_onevision", 4)
    assert compressor.policy.config.attention == "causal"
    assert metadata.selection == SelectionConfig(rule="frame-budgets")
    assert torch.equal(compressor.policy.norm.weight, published[f"{PREFIX}layernorm.weight"])
    assert run(monkeypatch, *arguments) == 2
    assert "is in use" in capsys.readouterr().err
    assert run(monkeypatch, *arguments, "--overwrite") == 0


def test_the_command_refuses_a_checkpoint_of_another_model_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], published: State, tmp_path: Path
) -> None:
    save_file(published, tmp_path / "published.safetensors")
    arguments = ("policy", "import", tmp_path / "published.safetensors", "--model", "embedded")
    assert run(monkeypatch, *arguments, "--out", tmp_path / "policy") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "belongs to another model than 'embedded'" in lines[0]
