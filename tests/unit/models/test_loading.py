"""Loading, what it refuses, and the small parts below the adapters."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from cacovid.config import ModelConfig
from cacovid.errors import UserError
from cacovid.models.loading import FAMILIES, load_video_llm, resolve_device, resolve_dtype, resolve_path
from cacovid.models.options import option_token_ids
from tests.support.tiny_models import BUILDERS, save_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model("llava_onevision", tmp_path_factory.mktemp("tiny"))


def write_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_family_has_a_tiny_model() -> None:
    assert set(FAMILIES) == set(BUILDERS)


@pytest.mark.parametrize("model_type", ["bert", "never_heard_of"])
def test_unknown_model_type_lists_the_known_ones(folder: Path, tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UserError, match=r"llava_onevision.*qwen3_vl.*docs/new-backbone\.md") as caught:
        load_video_llm(ModelConfig(path=str(tmp_path)))
    assert model_type in str(caught.value)


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "~/no-such-model", "model", "a/b/c"])
def test_missing_folder_is_named(path: str) -> None:
    with pytest.raises(UserError, match=r"does not exist.*hub id"):
        resolve_path(path)


def test_folder_without_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        resolve_path(str(tmp_path))


def test_unreachable_hub_id_says_what_to_give_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect to the hub.\nCheckout your internet connection")

    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", unreachable)
    with pytest.raises(UserError, match=r"'some/model'.*couldn't connect to the hub\. Give 'embedded', a folder"):
        load_video_llm(ModelConfig(path="some/model"))


def keep_half_of_the_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file(dict(sorted(state.items())[::2]), folder / "model.safetensors", metadata={"format": "pt"})


def widen_the_feed_forward_part(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    write_config(folder, text_config=text | {"intermediate_size": 64})


def pickle_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Path()}, folder / "pytorch_model.bin")


def bring_own_code(folder: Path) -> None:
    write_config(folder, model_type="own_llava", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
    (folder / "configuration_own.py").write_text("raise SystemExit('the code was run')")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot load the model"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 99), "cannot load the model"),
        (pickle_code, "more than plain tensors.*safetensors"),
        (keep_half_of_the_weights, r"do not fit its config\.json: \S+ and \d+ more missing"),
        (widen_the_feed_forward_part, r"do not fit its config\.json: \S+mlp\.down_proj\.weight and 8 more"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), r"add chat_template\.jinja"),
        (lambda folder: (folder / "processor_config.json").unlink(), "cannot load the processor.*Give a whole folder"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot load the processor.*Give a whole folder"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot read the configuration"),
        (lambda folder: (folder / "config.json").write_text("[]"), "model type None.*Known: internvl"),
        (lambda folder: write_config(folder, text_config={"hidden_size": "x"}), "cannot read the configuration"),
        (lambda folder: write_config(folder, quantization_config={"quant_method": "awq"}), "quantised"),
        (bring_own_code, "'own_llava'.*never run.*'...-hf'.*Known: internvl"),
    ],
)
def test_unusable_folders_are_one_line(tmp_path: Path, folder: Path, change: Any, message: str) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    change(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_video_llm(ModelConfig(path=str(tmp_path), device="cpu"))
    assert "\n" not in str(caught.value)


def test_a_missing_attention_kernel_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.attention='flash_attention_2': .*installed; use 'sdpa'"):
        load_video_llm(ModelConfig(path=str(folder), device="cpu", attention="flash_attention_2"))


def test_weights_of_torchs_own_format_load(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    same = load_video_llm(ModelConfig(path=str(folder), device="cpu")).fingerprint
    assert load_video_llm(ModelConfig(path=str(tmp_path), device="cpu")).fingerprint == same


@pytest.mark.parametrize("family", sorted(BUILDERS))
def test_tied_embeddings_are_not_taken_for_missing_weights(tmp_path: Path, family: str) -> None:
    save_tiny_model(family, tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())["text_config"]
    write_config(tmp_path, tie_word_embeddings=True, text_config=text | {"tie_word_embeddings": True})
    state = load_file(tmp_path / "model.safetensors")
    untied = {name: tensor for name, tensor in state.items() if "lm_head" not in name}
    save_file(untied, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load_video_llm(ModelConfig(path=str(tmp_path), device="cpu")).model
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_device_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    with pytest.raises(UserError, match="no torch device"):
        resolve_device("gpu0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="sees no GPU"):
        resolve_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="sees 2 GPUs"):
        resolve_device("cuda:2")


def test_model_is_frozen_and_in_eval_mode(folder: Path) -> None:
    llm = load_video_llm(ModelConfig(path=str(folder), device="cpu"))
    assert not llm.model.training
    assert not any(weight.requires_grad for weight in llm.model.parameters())


def test_fingerprint_sees_settings_that_change_the_outputs(folder: Path, tmp_path: Path) -> None:
    save_tiny_model("llava_onevision", tmp_path)
    config = ModelConfig(path=str(tmp_path), device="cpu")
    before = load_video_llm(config).fingerprint
    assert before == load_video_llm(ModelConfig(path=str(folder), device="cpu")).fingerprint
    write_config(tmp_path, vision_feature_layer=-2)
    assert load_video_llm(config).fingerprint != before


def test_fingerprint_is_the_same_in_another_process(folder: Path) -> None:
    code = (
        "from cacovid.config import ModelConfig; from cacovid.models.loading import load_video_llm\n"
        f"print(load_video_llm(ModelConfig(path={str(folder)!r}, device='cpu')).fingerprint)"
    )
    # A fresh interpreter also shows that torchvision needs no import order from its caller.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == load_video_llm(ModelConfig(path=str(folder), device="cpu")).fingerprint


def test_lone_prompts_are_given_twice_to_flash_attention(folder: Path) -> None:
    """Its packed-sequence rule, which only batches of one are subject to, would cut at every gap."""
    llm = load_video_llm(ModelConfig(path=str(folder), device="cpu"))
    encoded = llm.encode_chat([{"role": "user", "content": [{"type": "text", "text": "what"}]}], [])
    llm.config = ModelConfig(path=str(folder), attention="flash_attention_2")
    keep = torch.empty(1, 0, dtype=torch.long)
    [(rows, count)] = llm._batches(encoded, keep, 0)
    assert (rows.shape[0], count) == (2, 1)
    assert llm.first_logits(encoded, keep).shape[0] == 1
    assert len(llm.answer(encoded, keep, 2).texts) == 1
    llm.config = llm.config.model_copy(update={"positions": "contiguous"})
    [(rows, count)] = llm._batches(encoded, keep, 0)
    assert (rows.shape[0], count) == (1, 1)


def space_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    """Words carry their leading space, as in byte-pair and sentence-piece vocabularies."""
    tokens = ["<unk>", "ASSISTANT:", *words]
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def test_options_take_the_leading_space_where_the_prompt_ends_without_one() -> None:
    tokenizer = space_tokenizer("▁A", "▁B", "A", "B")
    assert option_token_ids(tokenizer, "ASSISTANT:", ("A", "B")) == [2, 3]


def test_options_stand_bare_behind_a_special_token() -> None:
    tokenizer = space_tokenizer("▁A", "▁B", "A", "B", "<|assistant|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|assistant|>"]})
    assert option_token_ids(tokenizer, "<|assistant|>", ("A", "B")) == [4, 5]


def test_options_without_a_token_are_refused() -> None:
    with pytest.raises(UserError, match="letters B have no token"):
        option_token_ids(space_tokenizer("▁A"), "ASSISTANT:", ("A", "B"))


def test_the_documented_example_of_a_new_family_works(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "new-backbone.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert code.count("\n") < 60
    scope: dict[str, Any] = {}
    exec(compile(code, "docs/new-backbone.md", "exec"), scope)
    model, processor = tiny_qwen2_vl()
    llm = scope["Qwen2VL"](model, processor, ModelConfig())
    frames = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)
    encoded = llm.encode(llm.watch(frames), "what is the colour?")
    raw = processor(
        text=processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what is the colour?"}]}],
            add_generation_prompt=True,
            tokenize=False,
        ),
        videos=[frames],
        return_tensors="pt",
    )
    everything = torch.arange(encoded.grid.tokens).unsqueeze(0)
    with torch.no_grad():
        expected = model(**raw).logits[:, -1]
    torch.testing.assert_close(llm.first_logits(encoded, everything), expected, atol=1e-5, rtol=0)
    assert encoded.grid.frames == 3


def tiny_qwen2_vl() -> Any:
    _, parts = BUILDERS["qwen2_5_vl"](8)
    processor = hf.Qwen2VLProcessor(
        image_processor=parts.image_processor,
        tokenizer=parts.tokenizer,
        video_processor=parts.video_processor,
        chat_template=parts.chat_template,
    )
    ids = parts.tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
    text = {"vocab_size": 192, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 3}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
    config = hf.Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4},
        text_config=text,
        image_token_id=ids[0],
        video_token_id=ids[1],
    )
    return hf.Qwen2VLForConditionalGeneration(config), processor
