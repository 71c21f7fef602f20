import dataclasses
import pickle

import pytest
import torch

from cacovid.config import PolicyConfig
from cacovid.errors import UserError
from cacovid.policy.base import CompressionPolicy, PolicyOutput, pool_frames
from cacovid.policy.batch import collate
from cacovid.policy.build import build_policy
from cacovid.policy.decoder_layer import FirstLayer
from cacovid.policy.late import LatePolicy, standardised
from cacovid.records import PolicyInput, TokenGrid
from tests.support.made_layers import tiny_layer, tiny_text_model
from tests.support.made_records import make_input

LAYER_TYPES = ["llama", "mistral", "qwen2", "qwen3", "qwen2_5_vl_text", "qwen3_vl_text"]
KINDS = ["late", "blind", *LAYER_TYPES]
GRID = TokenGrid(3, 2, 3)


def make_policy(kind: str, seed: int = 0) -> CompressionPolicy:
    if kind in LAYER_TYPES:
        return build_policy(PolicyConfig(kind="paper"), 32, tiny_layer(kind), seed=seed).eval()
    config = PolicyConfig(width=8, heads=3, text_positions=4, question_aware=kind != "blind")
    policy = build_policy(config, 32, seed=seed).eval()
    if kind == "late":  # biases start at 0: give them values, so that mistakes show
        torch.nn.init.normal_(policy.position_bias)
        torch.nn.init.normal_(policy.text_bias.weight, std=0.2)
    return policy


def inputs_for(kind: str, **changes: object) -> PolicyInput:
    rows = 3 if kind.endswith("_text") else 1
    return make_input(**{"grid": GRID, "width": 32, "rows": rows, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_logits_have_a_row_for_every_token_and_frame(kind):
    output = make_policy(kind).logits([inputs_for(kind), inputs_for(kind, seed=1)])
    assert output.token_logits.shape == (2, GRID.tokens, 2)
    assert output.frame_logits.shape == (2, GRID.frames, 2)
    torch.testing.assert_close(output.token_scores, output.token_logits[..., 1] - output.token_logits[..., 0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_equals_its_items_alone(kind):
    policy = make_policy(kind)
    items = [inputs_for(kind, seed=i, before=1 + i, after=2 + 3 * i) for i in range(3)]
    together = policy.logits(items)
    for row, item in enumerate(items):
        alone = policy.logits([item])
        torch.testing.assert_close(together.token_logits[row], alone.token_logits[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.frame_logits[row], alone.frame_logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_question_behind_the_video_matters_unless_hidden(kind):
    policy, item = make_policy(kind), inputs_for(kind)
    changed = dataclasses.replace(item, text=torch.cat([item.text[:-1], -item.text[-1:]]))
    same = torch.equal(policy.logits([item]).token_logits, policy.logits([changed]).token_logits)
    assert same == (kind == "blind")


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_decide_the_weights_and_the_global_generator_is_left_alone(kind):
    before = torch.random.get_rng_state()
    first, again, other = (build_like(kind, seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    item = inputs_for(kind)
    assert torch.equal(first.logits([item]).token_logits, again.logits([item]).token_logits)
    assert not torch.equal(first.logits([item]).token_logits, other.logits([item]).token_logits)


def build_like(kind: str, seed: int) -> CompressionPolicy:
    layer = tiny_layer(kind) if kind in LAYER_TYPES else None
    config = PolicyConfig(kind="paper" if layer else "late", question_aware=kind != "blind")
    return build_policy(config, 32, layer, seed=seed)


@pytest.mark.parametrize("kind", ["late", "blind"])
def test_bfloat16_inputs_and_weights_are_computed_in_float32(kind):
    policy, item = make_policy(kind), inputs_for(kind)
    half = dataclasses.replace(item, features=item.features.bfloat16(), text=item.text.bfloat16())
    full = dataclasses.replace(half, features=half.features.float(), text=half.text.float())
    assert torch.equal(policy.logits([half]).token_logits, policy.logits([full]).token_logits)
    output = policy.bfloat16().logits([half])
    assert output.token_logits.dtype == torch.float32


def test_a_paper_policy_in_bfloat16_gives_float32_logits():
    output = make_policy("qwen2").bfloat16().logits([inputs_for("qwen2", dtype=torch.bfloat16)])
    assert output.token_logits.dtype == torch.float32
    assert output.token_logits.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_in_one_group_and_gets_a_gradient(kind):
    policy = make_policy(kind).train()
    output = policy(collate([inputs_for(kind, seed=i) for i in range(2)]))
    (output.token_logits.square().sum() + output.frame_logits.square().sum()).backward()
    heads, pretrained = policy.parameter_groups()
    assert {id(p) for p in heads} | {id(p) for p in pretrained} == {id(p) for p in policy.parameters()}
    assert len(heads) + len(pretrained) == len(list(policy.parameters()))
    assert bool(pretrained) == (kind in LAYER_TYPES)
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert bool(parameter.grad.any()), name


# --- late ---


def slow_late_similarities(policy: LatePolicy, item: PolicyInput) -> torch.Tensor:
    """(N, H) standardised similarities, one token and head at a time."""
    x = item.features - item.features.mean(dim=0)
    words = item.text.shape[0]
    result = torch.zeros(x.shape[0], policy.config.heads)
    for head in range(policy.config.heads):
        weight = policy.similarity.weight[head * policy.config.width : (head + 1) * policy.config.width]
        for token in range(x.shape[0]):
            terms = []
            for word in range(words):
                similarity = torch.cosine_similarity(weight @ x[token], weight @ item.text[word], dim=0)
                position = min(words - 1 - word, policy.config.text_positions - 1)
                bias = policy.text_bias.weight[head] @ item.text[word] + policy.position_bias[head, position]
                terms.append((similarity + bias) / 0.1)
            result[token, head] = 0.1 * torch.logsumexp(torch.stack(terms), dim=0)
    return (result - result.mean(dim=0)) / (result.var(dim=0, correction=0) + 1e-6).sqrt()


@torch.no_grad()
def test_late_similarities_equal_the_slow_reference():
    policy, item = make_policy("late"), inputs_for("late")
    batch = collate([item, inputs_for("late", seed=1, after=9)])
    x = batch.features - batch.features.mean(dim=1, keepdim=True)
    fast = standardised(policy._similarities(policy._video_projections(x)[1], batch))[0]
    torch.testing.assert_close(fast, slow_late_similarities(policy, item), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_late_redundancy_features_equal_the_slow_reference():
    policy, item = make_policy("late"), inputs_for("late")
    x = item.features - item.features.mean(dim=0)
    fast = policy._redundancy(x[None], collate([item]))[0]
    for token in range(GRID.tokens):
        frame = token // GRID.per_frame
        mean = x[frame * GRID.per_frame : (frame + 1) * GRID.per_frame].mean(dim=0)
        earlier = torch.cosine_similarity(x[token], x[token - GRID.per_frame], dim=0) if frame else torch.tensor(0.0)
        expected = torch.stack([torch.cosine_similarity(x[token], mean, dim=0), earlier])
        torch.testing.assert_close(fast[token], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_late_scores_similarities_half_the_context_and_redundancy():
    policy, item = make_policy("late"), inputs_for("late")
    batch = collate([item])
    x = batch.features - batch.features.mean(dim=1, keepdim=True)
    similarities = standardised(policy._similarities(policy._video_projections(x)[1], batch))
    parts = [similarities, 0.5 * policy.context(x), policy._redundancy(x, batch)]
    torch.testing.assert_close(policy(batch).token_logits, policy.scorer(torch.cat(parts, dim=-1)))


def test_late_heads_start_with_orthonormal_rows_and_no_biases():
    policy = build_policy(PolicyConfig(width=8, heads=3), 32, seed=0)
    for rows in policy.similarity.weight.split(8):
        torch.testing.assert_close(rows @ rows.T, torch.eye(8), atol=1e-5, rtol=0)
    assert policy.text_bias.weight.eq(0).all()
    assert policy.position_bias.eq(0).all()


def test_late_survives_a_clip_whose_tokens_are_all_equal():
    policy, item = make_policy("late").train(), inputs_for("late")
    batch = collate([dataclasses.replace(item, features=torch.ones_like(item.features))])
    output = policy(batch)
    output.token_logits.square().sum().backward()
    assert output.token_logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in policy.parameters())


def test_a_frame_scores_about_as_its_best_token():
    logits = torch.zeros(1, 8, 2)
    logits[0, 5, 1] = 20.0
    frames = PolicyOutput(logits, pool_frames(logits, 2)).frame_scores
    torch.testing.assert_close(frames, torch.tensor([[0.0, 20.0]]), atol=1e-4, rtol=0)


# --- paper ---


@torch.no_grad()
def test_paper_logits_are_two_heads_on_normed_tokens_and_frame_means():
    policy, item = make_policy("qwen2"), inputs_for("qwen2")
    torch.nn.init.uniform_(policy.norm.weight, 0.5, 2.0)
    batch = collate([item])
    video = policy.layer(batch.prompt(), batch.position_ids, batch.prompt_mask)[0, item.video_columns]
    means = torch.stack([rows.mean(dim=0) for rows in video.split(GRID.per_frame)])

    def normed(rows: torch.Tensor) -> torch.Tensor:
        return rows / (rows.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * policy.norm.weight

    output = policy(batch)
    torch.testing.assert_close(output.token_logits[0], policy.token_head(normed(video)))
    torch.testing.assert_close(output.frame_logits[0], policy.frame_head(normed(means)))


@torch.no_grad()
def test_paper_policy_scores_frames_by_their_tokens_where_it_has_no_frame_samples(tmp_path):
    config = PolicyConfig(kind="paper", frame_scores="tokens")
    by_tokens = build_policy(config, 32, tiny_layer("qwen2"), seed=0).eval()
    batch = collate([inputs_for("qwen2")])
    output, by_head = by_tokens(batch), make_policy("qwen2")(batch)
    torch.testing.assert_close(output.token_logits, by_head.token_logits, rtol=0, atol=0)
    torch.testing.assert_close(output.frame_logits, pool_frames(output.token_logits, GRID.frames))
    assert not any(name.startswith("frame_head") for name in by_tokens.state_dict())
    by_tokens.save_pretrained(tmp_path)
    again = CompressionPolicy.from_pretrained(tmp_path)(batch)
    torch.testing.assert_close(again.frame_logits, output.frame_logits, rtol=0, atol=0)


def test_paper_heads_halve_the_width_four_times_with_silu_between():
    policy = make_policy("qwen2")
    for head in (policy.token_head, policy.frame_head):
        linear = [layer for layer in head if isinstance(layer, torch.nn.Linear)]
        assert [layer.out_features for layer in linear] == [16, 8, 4, 2, 2]
        assert [type(layer).__name__ for layer in head] == ["Linear", "SiLU"] * 4 + ["Linear"]


@pytest.mark.parametrize("kind", LAYER_TYPES)
@torch.no_grad()
def test_later_tokens_influence_earlier_ones_and_padding_influences_none(kind):
    layer = tiny_layer(kind).eval()
    rows = 3 if kind.endswith("_text") else 1
    hidden = torch.randn(1, 6, 32)
    positions = torch.arange(6).expand(rows, 1, -1)
    for mask, reaches in ((torch.ones(1, 6, dtype=torch.bool), True), (torch.arange(6)[None] < 5, False)):
        before = layer(hidden, positions, mask)
        changed = hidden.clone()
        changed[0, 5] += 1
        difference = (layer(changed, positions, mask) - before)[0, :5].abs().amax(dim=-1)
        assert bool((difference > 1e-6).all()) if reaches else bool(difference.eq(0).all())


@pytest.mark.parametrize("kind", LAYER_TYPES)
@torch.no_grad()
def test_a_causal_layer_sees_what_precedes_alone_with_and_without_padding(kind):
    layer = tiny_layer(kind).eval()
    layer.causal = True
    rows = 3 if kind.endswith("_text") else 1
    hidden = torch.randn(1, 6, 32)
    positions = torch.arange(6).expand(rows, 1, -1)
    changed = hidden.clone()
    changed[0, 3] += 1
    for real in (6, 5):
        mask = torch.arange(6)[None] < real
        before = layer(hidden, positions, mask)
        difference = (layer(changed, positions, mask) - before)[0].abs().amax(dim=-1)
        assert bool(difference[:3].eq(0).all())
        assert bool((difference[3:real] > 1e-6).all())
    torch.testing.assert_close(before[0, :5], layer(hidden[:, :5], positions[..., :5], mask[:, :5])[0])


@pytest.mark.parametrize("kind", LAYER_TYPES)
@torch.no_grad()
def test_the_layer_is_the_language_models_own_with_full_attention(kind):
    model = tiny_text_model(kind)
    layer = FirstLayer.from_language_model(model)
    rows = 3 if kind.endswith("_text") else 1
    hidden = torch.randn(2, 7, 32)
    positions = torch.randint(9, (rows, 2, 7))
    rotation = model.rotary_emb(hidden, positions if rows == 3 else positions[0])
    model.config._attn_implementation = "eager"  # eager attends to everything that its mask leaves
    own = model.layers[0](hidden, attention_mask=torch.zeros(2, 1, 7, 7), position_embeddings=rotation)
    torch.testing.assert_close(layer(hidden, positions, torch.ones(2, 7, dtype=torch.bool)), own, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_taking_the_layer_leaves_the_language_model_causal_and_untouched():
    model = tiny_text_model("qwen2")
    hidden = torch.randn(1, 6, 32)
    before = model(inputs_embeds=hidden).last_hidden_state
    policy = build_policy(PolicyConfig(kind="paper"), 32, FirstLayer.from_language_model(model), seed=0)
    for parameter in policy.parameters():
        parameter.add_(1)
    assert torch.equal(model(inputs_embeds=hidden).last_hidden_state, before)
    assert model.layers[0].self_attn.is_causal


def test_building_copies_the_layer_it_is_given():
    layer = tiny_layer()
    policy = build_policy(PolicyConfig(kind="paper"), 32, layer, seed=0)
    with torch.no_grad():
        next(iter(policy.layer.parameters())).add_(1)
    assert not torch.equal(next(iter(policy.layer.parameters())), next(iter(layer.parameters())))


def test_frozen_half_precision_layers_become_trainable_float32():
    model = tiny_text_model("qwen2").requires_grad_(False).bfloat16()
    layer = FirstLayer.from_language_model(model)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in layer.parameters())


def test_half_precision_keeps_the_rotary_frequencies_of_far_positions():
    model = tiny_text_model("qwen2")
    exact = FirstLayer.from_language_model(model)
    layer = FirstLayer.from_language_model(model.bfloat16()).bfloat16()
    positions = torch.tensor([[6000]])
    for ours, theirs in zip(
        layer.rotary(torch.zeros(1), positions), exact.rotary(torch.zeros(1), positions), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_saved_layers_name_no_folder():
    model = tiny_text_model("qwen2")
    model.config._name_or_path = "/somebody/models"
    assert "/somebody" not in FirstLayer.from_language_model(model).spec.model_dump_json()


def test_layers_survive_pickling():
    layer = tiny_layer("qwen3").eval()
    again = pickle.loads(pickle.dumps(layer))
    hidden, mask = torch.randn(1, 4, 32), torch.ones(1, 4, dtype=torch.bool)
    positions = torch.arange(4).view(1, 1, 4)
    assert torch.equal(layer(hidden, positions, mask), again(hidden, positions, mask))


def test_unknown_layer_types_are_an_error_that_lists_the_known_ones():
    model = tiny_text_model("qwen2")
    model.config.model_type = "gpt-novel"
    with pytest.raises(UserError, match=r"gpt-novel.*qwen2"):
        FirstLayer.from_language_model(model)


def test_the_paper_policy_without_a_layer_is_an_error():
    with pytest.raises(UserError, match="first decoder layer"):
        build_policy(PolicyConfig(kind="paper"), 32, seed=0)
