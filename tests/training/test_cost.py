import pytest
import torch
from tiny_models import tiny_causal, tiny_masked
from torch.utils.flop_counter import FlopCounterMode

from hf_igpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from hf_igpt.configuration_igpt import PRESETS
from hf_igpt.training import throughput
from hf_igpt.training.cost import (
    attended_pairs,
    block_parameters,
    executed_flops,
    forward_flops,
    matmul_peak,
    parameters,
    product_parameters,
    training_flops,
)
from hf_igpt.training.throughput import Throughput, training_seconds


WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
KINDS = {
    "next_pixel": {},
    "masked": {"is_causal": False},
    "windows": WINDOWED,
    "masked_windows": {"is_causal": False, **WINDOWED},
}


def loss_of(model, tokens, **options):
    if model.config.is_causal:
        return model(labels=tokens, **options)
    return model(input_ids=tokens, bool_masked_pos=torch.ones_like(tokens, dtype=torch.bool), **options)


def counted_flops(model, images: int, **options) -> FlopCounterMode:
    with FlopCounterMode(display=False) as counter:
        loss_of(model, torch.zeros(images, model.config.n_positions, dtype=torch.long), **options).loss.backward()
    return counter


def tiny(is_causal: bool = True, **options):
    return (tiny_causal if is_causal else tiny_masked)(torch.float32, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_that_torch_counts(kind):
    """Eager attention computes the whole score matrix, and torch counts it; we count the pairs that are needed."""
    model = tiny(attn_implementation="eager", **KINDS[kind])
    config = model.config
    counted = counted_flops(model, 3).get_total_flops()
    unneeded = sum(config.n_positions**2 - attended_pairs(config, layer) for layer in range(2))
    assert (unneeded == 0) == (kind == "masked")
    assert counted == 3 * (training_flops(config) + 3 * 4 * config.hidden_size * unneeded)


def test_products_of_a_middling_model():
    """Torch's counter doesn't know the CPU's fused attention: what is left are products, counted exactly."""
    config = ImageGPTConfig(image_size=16, hidden_size=128, num_hidden_layers=6, num_attention_heads=4)
    counted = counted_flops(ImageGPTForCausalImageModeling(config), 2).get_total_flops()
    assert counted == 2 * 3 * 2 * config.n_positions * product_parameters(config)
    attention = sum(2 * 2 * attended_pairs(config, layer) * config.hidden_size for layer in range(6))
    assert counted + 2 * 3 * attention == 2 * training_flops(config)


@pytest.mark.parametrize("kind", KINDS)
def test_attended_pairs_are_those_that_get_a_weight(kind):
    model = tiny(attn_implementation="eager", **KINDS[kind])
    outputs = loss_of(model, torch.zeros(1, model.config.n_positions, dtype=torch.long), output_attentions=True)
    for layer, weights in enumerate(outputs.attentions):
        assert (weights[0, 0] > 0).sum() == attended_pairs(model.config, layer)


def test_products_that_run_again():
    """The head's where the loss alone is asked for, as in training, and the blocks' under gradient checkpointing."""
    model = tiny(attn_implementation="eager", is_causal=False).train()
    assert counted_flops(model, 2, skip_logits=True).get_total_flops() == 2 * executed_flops(model.config)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    counted = counted_flops(model, 2, skip_logits=True).get_total_flops()
    assert counted == 2 * executed_flops(model.config, gradient_checkpointing=True)


def test_full_attention_and_the_backward_pass():
    causal, full = (ImageGPTConfig(is_causal=is_causal) for is_causal in (True, False))
    assert forward_flops(full) - forward_flops(causal) == 2 * 2 * 24 * 512 * (1024 * 1023 // 2)
    assert training_flops(causal) == 3 * forward_flops(causal)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("options", [{}, {"image_size": [48, 64], "vocab_size": 17}, {"use_bias": True}])
def test_parameters_are_those_of_the_model(preset, options):
    config = ImageGPTConfig.from_preset(preset, **options)
    with torch.device("meta"):
        model = ImageGPTForCausalImageModeling(config)
    assert parameters(config) == model.num_parameters()
    assert config.num_hidden_layers * block_parameters(config) == sum(
        p.numel() for p in model.transformer.h.parameters()
    )
    linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert product_parameters(config) == sum(weight.numel() for weight in linear)


def test_the_measured_peak_is_a_rate():
    peak = matmul_peak(torch.device("cpu"), torch.float32, size=64, seconds=0.02)
    assert 1e6 < peak < 1e15


def test_training_takes_as_long_as_its_rates_and_its_last_steps_say():
    log = [
        {"step": 2, "images_per_second": 8.0},
        {"step": 2, "eval_loss": 1.0},
        {"step": 6, "images_per_second": 16.0},
    ]
    assert training_seconds(log, images_per_step=4) == 1.0 + 1.0
    assert training_seconds([*log, {"step": 8, "train_loss": 1.0}], images_per_step=4) == 1.0 + 1.0 + 0.5
    assert training_seconds([{"step": 8, "train_loss": 1.0}], images_per_step=4) is None


def test_throughput_leaves_out_pauses(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    config = ImageGPTConfig()
    clock = Throughput(config.n_positions, training_flops(config), images_per_step=8, peak_flops=1e12)
    assert not clock.is_running
    clock.start(10)
    now[0] += 5
    clock.pause(3)
    figures = clock.since_last_log(14)
    assert figures["images_per_second"] == 4 * 8 / 2
    assert figures["tokens_per_second"] == 16 * 1024
    assert figures["fraction_of_matmul_peak"] == pytest.approx(16 * training_flops(config) / 1e12, rel=1e-3)
    assert clock.since_last_log(14) == {}
    now[0] += 1
    assert clock.since_last_log(15)["images_per_second"] == 8
