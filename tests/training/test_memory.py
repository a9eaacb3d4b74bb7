"""Predicted bytes against those that autograd keeps, tensor by tensor, and what follows from the settings."""

import pytest
import torch

from hf_igpt import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling, functional_igpt
from hf_igpt.training.cost import parameters
from hf_igpt.training.memory import TrainingSetting, cache_bytes, training_memory


IMAGES = 2
SIZES = {"image_size": 8, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 21}


ROTARY = {"rotary_base": 100.0}


def kept_bytes(config: ImageGPTConfig, attention: str, is_half: bool, checkpointing: bool) -> int:
    """Bytes of floats and masks that the graph of one loss keeps, the weights left out."""
    kind = ImageGPTForCausalImageModeling if config.is_causal else ImageGPTForMaskedImageModeling
    model = kind._from_config(config, attn_implementation=attention).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.dtype != torch.int64 and tensor.numel() > IMAGES:
            kept[storage.data_ptr()] = storage
        return tensor

    tokens = torch.zeros(IMAGES, config.n_positions, dtype=torch.long)
    mask = {} if config.is_causal else {"bool_masked_pos": torch.ones_like(tokens, dtype=torch.bool)}
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=is_half),
    ):
        model(tokens, **mask) if mask else model(labels=tokens)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("attention", "is_causal", "is_half", "fields"),
    # Not the masked one of eager attention in half precision: a CPU's autocast leaves its softmax in bf16.
    [(*kind, half, {}) for kind in (("sdpa", True), ("sdpa", False), ("eager", True)) for half in (False, True)]
    + [("eager", False, False, {}), ("sdpa", True, False, ROTARY), ("sdpa", False, True, ROTARY)],
)
def test_activations_are_what_autograd_keeps(monkeypatch, attention, is_causal, is_half, fields):
    """As on a GPU, without what only large tensors on a CPU recompute."""
    monkeypatch.setattr(functional_igpt, "SMALL_ELEMENTS", 1 << 60)
    config = ImageGPTConfig(is_causal=is_causal, **SIZES, **fields)
    memory = training_memory(config, TrainingSetting(IMAGES, is_half=is_half, on_cpu=False, attention=attention))
    kept = kept_bytes(config, attention, is_half, checkpointing=False)
    # Torch's norm of a CPU keeps what it normed too, a GPU's fused one doesn't; autograd's other tensors are small.
    norms = 7 * IMAGES * config.n_positions * config.hidden_size * 4
    logits = IMAGES * config.n_positions * config.num_values * 4
    assert kept - norms - logits - memory.copies == pytest.approx(memory.activations, rel=0.03)


def test_checkpointed_blocks_keep_their_input_alone():
    config = ImageGPTConfig(**SIZES)
    setting = TrainingSetting(IMAGES, gradient_checkpointing=True)
    memory, plain = training_memory(config, setting), training_memory(config, TrainingSetting(IMAGES))
    residual = IMAGES * config.n_positions * config.hidden_size * 4
    assert memory.activations == 3 * residual + 2 * residual
    assert memory.working > plain.working and memory.peak < plain.peak


def test_large_tensors_on_a_cpu_are_recomputed():
    """Of a block 20 tensors of the residual stream's width become 10 (functional_igpt)."""
    config = ImageGPTConfig(image_size=32, hidden_size=512, num_hidden_layers=1)
    residual = 1024 * 512 * 4
    large, elsewhere = (
        training_memory(config, TrainingSetting(1, on_cpu=on_cpu)).activations / residual - 2
        for on_cpu in (True, False)
    )
    assert large == pytest.approx(10, rel=0.01) and elsewhere == pytest.approx(20, rel=0.01)


def test_states_of_adam_and_what_devices_share():
    config = ImageGPTConfig.from_preset("igpt-s")
    count = parameters(config)
    alone = training_memory(config, TrainingSetting(1, is_half=True, on_cpu=False))
    assert (alone.weights, alone.gradients, alone.optimizer, alone.exchange) == (4 * count, 4 * count, 8 * count, 0)
    copied = training_memory(config, TrainingSetting(1, is_half=True, on_cpu=False, devices=8))
    assert (copied.weights, copied.exchange) == (4 * count, 4 * count)
    shared = training_memory(config, TrainingSetting(1, is_half=True, on_cpu=False, devices=8, sharding="full"))
    assert shared.weights == 4 * -(-count // 8) and shared.optimizer == 2 * shared.weights and shared.copies == 0
    assert 0 < shared.exchange < copied.exchange / 4


def test_gradients_are_there_from_the_start_where_batches_add_up():
    config = ImageGPTConfig(**SIZES)
    once, more = (training_memory(config, TrainingSetting(64, accumulates=more)) for more in (False, True))
    assert more.peak - once.peak == once.gradients


def test_the_loss_holds_one_block_of_logits():
    config = ImageGPTConfig(image_size=32, hidden_size=64, num_hidden_layers=1)
    image = 3 * 4 * 1024 * 512
    assert training_memory(config, TrainingSetting(1)).loss == image / 2
    assert training_memory(config, TrainingSetting(1, on_cpu=False)).loss == image
    for on_cpu in (True, False):
        assert training_memory(config, TrainingSetting(1024, on_cpu=on_cpu)).loss == 64 * image


def test_windows_bound_the_cache():
    full = ImageGPTConfig(**SIZES)
    types = ["sliding_attention", "sliding_attention", "full_attention"]
    windowed = ImageGPTConfig(layer_types=types, sliding_window=16, **SIZES)
    assert cache_bytes(full, 5, 2) == 2 * 5 * 3 * 64 * 48 * 2
    assert cache_bytes(windowed, 5, 2) == 2 * 5 * (16 + 16 + 64) * 48 * 2
