"""Checkpoints of transformers' own ImageGPT in our classes: equal logits, nothing missing or silently dropped."""

import json

import pytest
import torch
import transformers
from native_models import HEADS, SIZES, assert_equal_outputs, edit_config, native_model, outputs_of
from tiny_models import random_tokens
from transformers.models.imagegpt import modeling_imagegpt as native

from hf_igpt import (
    AutoModelForCausalImageModeling,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_equal_outputs_and_no_missing_or_unexpected_key(tmp_path, head, dtype, atol):
    theirs = native_model(head, dtype)
    theirs.save_pretrained(tmp_path)
    ours, info = HEADS[head][1].from_pretrained(tmp_path, output_loading_info=True)
    assert ours.dtype == dtype
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_equal_outputs(ours, theirs, atol)
    ours_count, theirs_count = (sum(p.numel() for p in model.parameters()) for model in (ours, theirs))
    assert ours_count == theirs_count


def test_gradients_equal_native_ones(tmp_path):
    theirs = native_model(dtype=torch.float64)
    theirs.save_pretrained(tmp_path)
    ours = ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    tokens = random_tokens(ours.config)
    losses = [model(input_ids=tokens, labels=tokens).loss for model in (ours, theirs)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-12)
    for name, parameter in theirs.named_parameters():
        gradient = ours.get_parameter(name).grad
        if parameter.shape != gradient.shape or ".c_" in name and name.endswith("weight"):
            gradient = gradient.T
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-12, rtol=0, msg=name)


def test_a_native_classifier_is_fed_as_it_was_trained(tmp_path):
    theirs = native_model("classifier")
    theirs.save_pretrained(tmp_path)
    ours = ImageGPTForImageClassification.from_pretrained(tmp_path)
    assert ours.config.use_start_token is False
    assert ours.config.generative_loss_weight == 0
    assert ours.config.num_labels == 3
    tokens, labels = random_tokens(ours.config), torch.tensor([2, 0])
    loss, expected = (model(input_ids=tokens, labels=labels).loss.item() for model in (ours, theirs))
    assert loss == pytest.approx(expected, abs=1e-5)


def test_a_native_causal_checkpoint_gives_a_classifier_with_the_start_token(tmp_path):
    native_model().save_pretrained(tmp_path)
    model, info = ImageGPTForImageClassification.from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    assert model.config.use_start_token is True
    assert info["missing_keys"] == {"score.weight"}
    assert model.score.weight.shape == (5, 24)


HONOURED = [
    {"activation_function": "gelu"},
    {"activation_function": "relu"},
    {"n_inner": 40},
    {"n_head": 24},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"reorder_and_upcast_attn": True},
    {"layer_norm_epsilon": 0.3},
    {"vocab_size": 29},
    {"n_positions": 25},
    {"n_layer": 1},
    {"is_decoder": True},
]


@pytest.mark.parametrize("field", HONOURED, ids=str)
def test_every_field_that_changes_the_numbers_is_honoured(tmp_path, field):
    theirs = native_model(**field)
    theirs.save_pretrained(tmp_path)
    for backend in ("eager", "sdpa"):
        ours = ImageGPTForCausalImageModeling.from_pretrained(tmp_path, attn_implementation=backend)
        assert ours.config._attn_implementation == backend
        assert_equal_outputs(ours, theirs)
    # Not vacuous: the same weights under the default are another function, where shapes allow it.
    default = transformers.ImageGPTConfig(**SIZES)
    if all(name not in field for name in ("n_inner", "vocab_size", "n_positions", "n_layer", "is_decoder")):
        other = native.ImageGPTForCausalImageModeling(default).eval()
        other.load_state_dict(theirs.state_dict())
        tokens = random_tokens(ours.config)
        changed = (outputs_of(other, tokens) - outputs_of(theirs, tokens)).abs().max()
        assert (changed > 1e-3) == ("reorder_and_upcast_attn" not in field)


@pytest.mark.parametrize(
    ("field", "ours"),
    [
        ({"resid_pdrop": 0.25}, {"resid_pdrop": 0.25, "embd_pdrop": 0.1}),
        ({"embd_pdrop": 0.0}, {"embd_pdrop": 0.0, "attn_pdrop": 0.1}),
        ({"attn_pdrop": 0.5}, {"attn_pdrop": 0.5}),
        ({"initializer_range": 0.1}, {"initializer_range": 0.1}),
        ({"use_cache": False}, {"use_cache": False}),
        ({"num_labels": 7}, {"num_labels": 7}),
        ({"id2label": {0: "a", 1: "b", 2: "c"}}, {"id2label": {0: "a", 1: "b", 2: "c"}, "num_labels": 3}),
        ({"problem_type": "regression"}, {"problem_type": "regression"}),
        ({"output_hidden_states": True}, {"output_hidden_states": True}),
        ({"bos_token_id": 10}, {"bos_token_id": 10, "start_token_id": 10}),
    ],
    ids=str,
)
def test_fields_without_effect_on_the_logits_are_kept(tmp_path, field, ours):
    native_model(**field).save_pretrained(tmp_path)
    config = ImageGPTForCausalImageModeling.from_pretrained(tmp_path).config
    assert {name: getattr(config, name) for name in ours} == ours
    assert config.use_bias is True
    assert config.is_causal is True


def test_fields_that_a_file_leaves_out_have_transformers_defaults(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "imagegpt"}))
    ours, theirs = ImageGPTConfig.from_pretrained(tmp_path), transformers.ImageGPTConfig()
    for name, value in theirs.to_dict().items():
        if name in native_fields():
            assert getattr(ours, name) == value, name


def native_fields() -> set[str]:
    own = set(transformers.ImageGPTConfig.__annotations__)
    return (
        own
        - {"model_type", "attribute_map", "keys_to_ignore_at_inference", "n_inner"}
        - {
            "add_cross_attention",
            "bos_token_id",
        }
    )


def test_no_field_of_transformers_config_is_unknown_to_the_translation():
    from hf_igpt import native_igpt

    known = {*native_igpt.SHARED_FIELDS, *native_igpt._REFUSED_FIELDS, *native_igpt._KEPT_FIELDS}
    assert native_fields() <= known | {"eos_token_id", "pad_token_id"}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"add_cross_attention": True}, "`add_cross_attention`.*cross-attention is not supported"),
        ({"tie_word_embeddings": True}, "`tie_word_embeddings`.*tied embeddings"),
        ({"eos_token_id": 3}, "`eos_token_id`"),
        ({"pad_token_id": 3}, "`pad_token_id`"),
        ({"bos_token_id": 3}, "`bos_token_id`"),
        ({"n_positions": 15}, "`n_positions`.*square number"),
        ({"activation_function": "nope"}, "`hidden_act`"),
        ({"n_embd": "wide"}, "`hidden_size`"),
        ({"n_head": 5}, "`hidden_size` must be divisible"),
    ],
    ids=str,
)
def test_trap_cross_attention_and_other_fields_we_lack_are_refused(tmp_path, field, message):
    native_model().save_pretrained(tmp_path)
    edit_config(tmp_path, **field)
    with pytest.raises(ValueError, match=message) as error:
        ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("head", HEADS)
def test_saved_again_it_has_our_layout_and_equal_outputs(tmp_path, head):
    theirs = native_model(head)
    theirs.save_pretrained(tmp_path / "native")
    ours = HEADS[head][1].from_pretrained(tmp_path / "native")
    ours.save_pretrained(tmp_path / "ours")
    saved = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert saved["model_type"] == "igpt"
    assert saved["use_bias"] is True
    assert "n_embd" not in saved
    shapes = safetensors_shapes(tmp_path / "ours" / "model.safetensors")
    prefix = "" if head == "backbone" else "transformer."
    assert shapes[f"{prefix}h.0.mlp.c_fc.weight"] == [96, 24]
    again, info = HEADS[head][1].from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_equal_outputs(again, theirs)


def safetensors_shapes(path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dictionary)


def test_arguments_of_from_pretrained_hold_for_native_checkpoints(tmp_path):
    theirs = native_model()
    theirs.save_pretrained(tmp_path)
    load = ImageGPTForCausalImageModeling.from_pretrained
    assert load(tmp_path, dtype=torch.float64).dtype == torch.float64
    assert load(tmp_path, dtype="float16").lm_head.weight.dtype == torch.float16
    assert load(tmp_path, resid_pdrop=0.5).config.resid_pdrop == 0.5
    assert load(tmp_path, config=ImageGPTConfig.from_pretrained(tmp_path, attn_pdrop=0.4)).config.attn_pdrop == 0.4
    assert load(str(tmp_path), local_files_only=True).config.name_or_path == str(tmp_path)
    assert load(tmp_path).training is False
    exact = native_model(dtype=torch.float64)
    exact.load_state_dict(theirs.state_dict())
    assert_equal_outputs(load(tmp_path, dtype=torch.float64), exact, atol=1e-12)


def test_it_generates_with_the_papers_settings(tmp_path):
    theirs = native_model()
    theirs.save_pretrained(tmp_path)
    ours = ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    start = torch.full((2, 1), 10)
    expected = theirs.generate(start, do_sample=False, max_length=17)
    assert torch.equal(ours.generate(start, do_sample=False), expected)
    assert ours.generation_config.top_k == 0
    assert ours.generate().shape == (1, 17)


def test_trap_no_auto_class_for_the_causal_head(tmp_path):
    theirs = native_model()
    theirs.save_pretrained(tmp_path / "native")
    ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "native").save_pretrained(tmp_path / "ours")
    for folder, expected in (
        ("native", native.ImageGPTForCausalImageModeling),
        ("ours", ImageGPTForCausalImageModeling),
    ):
        model = AutoModelForCausalImageModeling.from_pretrained(tmp_path / folder)
        assert type(model) is expected
        tokens = random_tokens(ImageGPTConfig.from_pretrained(tmp_path / folder))
        torch.testing.assert_close(model(input_ids=tokens).logits, theirs(input_ids=tokens).logits)
