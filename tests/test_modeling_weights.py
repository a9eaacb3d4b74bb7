"""Parameters: how many, how they are initialised, which a checkpoint of another head leaves to initialise."""

import math

import pytest
import torch
from tiny_models import randomize_, tiny_causal, tiny_config

from hf_igpt import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel


# The paper's rounded numbers (section 3.3 and table 2), and the exact ones of our layout: 12 L d^2 for the blocks,
# 513 d for the colours and the start token, 512 d for the head, 1024 d for the positions, (2 L + 1) d for the norms.
SIZES = {
    "igpt-s": (76, 76_571_648),
    "igpt-m": (455, 455_157_760),
    "igpt-l": (1362, 1_362_250_752),
    "igpt-xl": (6801, 6_801_438_720),
}


@pytest.mark.parametrize("preset", SIZES)
def test_presets_have_the_papers_parameter_counts(preset):
    config = ImageGPTConfig.from_preset(preset)
    layers, width = config.num_hidden_layers, config.hidden_size
    with torch.device("meta"):
        model = ImageGPTForCausalImageModeling(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 12 * layers * width**2 + (513 + 512 + 1024 + 2 * layers + 1) * width
    assert (count // 10**6, count) == SIZES[preset]


def expected_stds(config) -> dict[str, float]:
    width = config.hidden_size
    return {
        "wte.weight": 0.02,
        "wpe.weight": 0.01,
        "attn.c_attn.weight": width**-0.5,
        "attn.c_proj.weight": (width * config.num_hidden_layers) ** -0.5,
        "mlp.c_fc.weight": 0.02,
        "mlp.c_proj.weight": 0.02,
        "lm_head.weight": 0.0,
        "score.weight": 0.0,
    }


@pytest.mark.parametrize("initializer_range", [0.02, 0.04])
@pytest.mark.parametrize("head", [ImageGPTForCausalImageModeling, ImageGPTForImageClassification])
def test_initialisation_is_the_papers_and_scales_with_initializer_range(initializer_range, head):
    config = tiny_config(
        vocab_size=400,
        image_size=[16, 20],
        hidden_size=96,
        num_hidden_layers=3,
        intermediate_size=200,
        use_bias=True,
        initializer_range=initializer_range,
    )
    model = head(config)
    stds = expected_stds(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif ".ln_" in name:
            assert (parameter == 1).all(), name
        else:
            std = next(std for suffix, std in stds.items() if name.endswith(suffix)) * initializer_range / 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.03), name
            assert abs(parameter.mean().item()) <= 4 * std / math.sqrt(parameter.numel()), name


def test_the_start_token_is_initialised_like_a_colour():
    model = ImageGPTModel(tiny_config(hidden_size=3000, num_hidden_layers=1, intermediate_size=1))
    assert model.wte.weight[-1].std().item() == pytest.approx(0.02, rel=0.05)


def test_a_classifier_from_a_next_pixel_checkpoint_starts_at_zero_and_keeps_the_rest(tmp_path):
    causal = tiny_causal(torch.float32)
    causal.save_pretrained(tmp_path)
    model, info = ImageGPTForImageClassification.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    assert set(info["missing_keys"]) == {"score.weight"}
    assert not info["unexpected_keys"]
    assert model.score.weight.shape == (3, 24)
    assert not model.score.weight.any()
    for name, parameter in causal.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name


@pytest.mark.parametrize("head", [ImageGPTForCausalImageModeling, ImageGPTForImageClassification])
def test_a_backbone_takes_what_it_needs_of_a_heads_checkpoint_without_a_report(tmp_path, head):
    head(tiny_config()).save_pretrained(tmp_path)
    _, info = ImageGPTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())


def test_a_backbone_and_a_head_exchange_weights(tmp_path):
    causal = tiny_causal(torch.float32)
    causal.save_pretrained(tmp_path / "causal")
    backbone = ImageGPTModel.from_pretrained(tmp_path / "causal")
    for name, parameter in causal.transformer.named_parameters():
        assert torch.equal(backbone.get_parameter(name), parameter), name
    backbone.save_pretrained(tmp_path / "backbone")
    again, info = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "backbone", output_loading_info=True)
    assert set(info["missing_keys"]) == {"lm_head.weight"}
    assert not again.lm_head.weight.any()
    assert torch.equal(again.transformer.wte.weight, causal.transformer.wte.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_saved_model_comes_back_with_equal_weights_config_and_type(tmp_path, dtype):
    model = randomize_(ImageGPTForCausalImageModeling(tiny_config(num_channels=3, use_bias=True))).to(dtype)
    model.save_pretrained(tmp_path)
    again = ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    assert again.dtype == dtype
    assert again.config.to_diff_dict() == model.config.to_diff_dict()
    for name, parameter in model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter), name
    assert ImageGPTForCausalImageModeling.from_pretrained(tmp_path, dtype=torch.float16).dtype == torch.float16
