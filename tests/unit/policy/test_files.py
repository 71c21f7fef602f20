import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from cacovid.config import SelectionConfig
from cacovid.errors import UserError
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.files import PolicyMetadata
from tests.unit.policy.test_networks import KINDS, inputs_for, make_policy

METADATA = PolicyMetadata(
    model_fingerprint="abc",
    model_type="llava_onevision",
    model_path="some/model",
    trained_steps=7,
    selection=SelectionConfig(rule="half-uniform"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_policy_comes_back_the_same(kind, tmp_path):
    policy, item = make_policy(kind), inputs_for(kind)
    policy.metadata = METADATA
    policy.save_pretrained(tmp_path / "policy")
    again = CompressionPolicy.from_pretrained(tmp_path / "policy")
    assert type(again) is type(policy)
    assert again.metadata == METADATA
    assert again.config == policy.config
    assert not again.training
    for ours, theirs in zip(policy.logits([item]), again.logits([item]), strict=True):
        assert torch.equal(ours, theirs)
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == ["policy.json", "policy.safetensors"]


def test_weights_are_as_readable_as_any_file(tmp_path):
    make_policy("late").save_pretrained(tmp_path)
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "policy.safetensors").stat().st_mode == plain.stat().st_mode


def test_loading_leaves_the_global_generator_alone(tmp_path):
    make_policy("qwen2").save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    CompressionPolicy.from_pretrained(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())


def test_missing_and_unexpected_parameters_are_errors(tmp_path):
    make_policy("late").save_pretrained(tmp_path)
    state = load_file(tmp_path / "policy.safetensors")
    save_file({**state, "extra": torch.zeros(1)}, tmp_path / "policy.safetensors")
    with pytest.raises(UserError, match="extra"):
        CompressionPolicy.from_pretrained(tmp_path)
    state.pop("context.bias")
    save_file(state, tmp_path / "policy.safetensors")
    with pytest.raises(UserError, match=r"context\.bias"):
        CompressionPolicy.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 16}, "does not fit"),
        ({"format": 2}, "format"),
        ({"surprise": 1}, "surprise"),
        ({"config": {"kind": "other"}}, "config.kind"),
        ({"layer": {"model_type": "os.system", "text_config": {}}, "config": {"kind": "paper"}}, "os.system"),
        ({"layer": None, "config": {"kind": "paper"}}, "first decoder layer"),
    ],
)
def test_a_damaged_card_is_one_readable_error(tmp_path, change, message):
    make_policy("late").save_pretrained(tmp_path)
    card = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps({**card, **change}))
    with pytest.raises(UserError, match=message) as caught:
        CompressionPolicy.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_or_truncated_files_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"policy\.json"):
        CompressionPolicy.from_pretrained(tmp_path)
    make_policy("late").save_pretrained(tmp_path)
    weights = tmp_path / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        CompressionPolicy.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"policy\.safetensors"):
        CompressionPolicy.from_pretrained(tmp_path)
    (tmp_path / "policy.json").write_text("{")
    with pytest.raises(UserError, match="no JSON"):
        CompressionPolicy.from_pretrained(tmp_path)


def test_a_policy_of_another_model_is_refused(tmp_path):
    trained = make_policy("late")
    trained.metadata = METADATA
    trained.save_pretrained(tmp_path)
    policy = CompressionPolicy.from_pretrained(tmp_path)
    policy.check_model("abc", 32)
    with pytest.raises(UserError, match=r"width 32.*width 64"):
        policy.check_model("abc", 64)
    with pytest.raises(UserError, match="fingerprint abc"):
        policy.check_model("xyz", 32)
    make_policy("late").check_model("anything", 32)  # never saved with a model: nothing to compare
