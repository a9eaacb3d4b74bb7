import pytest
import torch
from tiny_models import tiny_causal
from torch.utils.flop_counter import FlopCounterMode

from hf_igpt import ImageGPTConfig
from hf_igpt.training import throughput
from hf_igpt.training.cost import forward_flops, matmul_peak, training_flops
from hf_igpt.training.throughput import Throughput


def test_flops_are_those_that_torch_counts():
    """Torch counts the whole score matrix, we count the half that a causal model needs."""
    model = tiny_causal(torch.float32, attn_implementation="eager")
    config = model.config
    tokens, layers, width = config.n_positions, config.num_hidden_layers, config.hidden_size
    with FlopCounterMode(display=False) as counter:
        model(labels=torch.zeros(3, tokens, dtype=torch.long))
    unneeded = 2 * 2 * layers * width * (tokens * tokens - tokens * (tokens + 1) // 2)
    assert counter.get_total_flops() == 3 * (forward_flops(config) + unneeded)


def test_full_attention_and_the_backward_pass():
    causal, full = (ImageGPTConfig(is_causal=is_causal) for is_causal in (True, False))
    assert forward_flops(full) - forward_flops(causal) == 2 * 2 * 24 * 512 * (1024 * 1023 // 2)
    assert training_flops(causal) == 3 * forward_flops(causal)


def test_the_measured_peak_is_a_rate():
    peak = matmul_peak(torch.device("cpu"), torch.float32, size=64, seconds=0.02)
    assert 1e6 < peak < 1e15


def test_throughput_leaves_out_pauses(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    config = ImageGPTConfig()
    clock = Throughput(config, images_per_step=8, peak_flops=1e12)
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
