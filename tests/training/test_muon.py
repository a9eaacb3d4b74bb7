"""Muon: its updates against singular values, its groups, a run that goes on from a checkpoint, what is refused."""

import math

import pytest
import torch
from tiny_models import tiny_config
from torch import nn

from hf_igpt import ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling
from hf_igpt.training.memory import TrainingSetting, training_memory
from hf_igpt.training.muon import MuonAdamW, muon_groups, orthogonalized
from hf_igpt.training.sharding import refuse_shards


@pytest.mark.parametrize("shape", [(8, 8), (24, 6), (6, 24)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    found = orthogonalized(matrices)
    for before, after in zip(matrices, found, strict=True):
        left, _, right = torch.linalg.svd(before, full_matrices=False)
        core = left.T @ after @ right.T
        values = core.diagonal()
        assert values.min() > 0.3 and values.max() < 1.3, values
        torch.testing.assert_close(core, torch.diag(values), atol=1e-3, rtol=0)


def test_zeros_stay_zeros():
    assert not orthogonalized(torch.zeros(1, 4, 4)).any()


@pytest.mark.parametrize("head", [ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling])
def test_every_parameter_is_in_one_group(head):
    model = head(tiny_config(use_bias=True, is_causal=head is ImageGPTForCausalImageModeling))
    groups = muon_groups(model, 0.02, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_parts = {
        parts: sorted(names[id(p)] for group in groups for p in group["params"] if group.get("parts") == parts)
        for parts in (None, 1, 3)
    }
    assert sorted(by_parts[None] + by_parts[1] + by_parts[3]) == sorted(names.values())
    assert by_parts[3] == [f"transformer.h.{layer}.attn.c_attn.weight" for layer in range(2)]
    assert by_parts[1] == [
        f"transformer.h.{layer}.{name}.weight"
        for layer in range(2)
        for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    decayed = {names[id(p)] for group in groups for p in group["params"] if group["weight_decay"]}
    assert decayed == {*by_parts[1], *by_parts[3], "lm_head.weight"}


def test_queries_keys_and_values_are_three_matrices():
    """Together, the largest of them would keep the others from moving."""
    torch.manual_seed(0)
    fused = nn.Parameter(torch.zeros(12, 4))
    parts = [nn.Parameter(torch.zeros(4, 4)) for _ in range(3)]
    gradients = [scale * torch.randn(4, 4) for scale in (100.0, 1.0, 0.01)]
    fused.grad = torch.cat(gradients)
    for part, gradient in zip(parts, gradients, strict=True):
        part.grad = gradient
    MuonAdamW([{"params": [fused], "parts": 3}], lr=0.1).step()
    MuonAdamW([{"params": parts, "parts": 1}], lr=0.1).step()
    torch.testing.assert_close(fused.detach(), torch.cat([part.detach() for part in parts]))
    assert all(part.detach().norm() > 0.1 for part in parts)


def test_the_rest_takes_the_steps_of_torchs_adamw():
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.empty(5, 3))
    theirs.data.copy_(ours.data)
    options = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
    optimizers = MuonAdamW([{"params": [ours]}], **options), torch.optim.AdamW([theirs], **options)
    for _ in range(4):
        ours.grad = torch.randn(5, 3)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"`parts` is 3 for a parameter of shape \[4, 4\].*Leave others to Adam"):
        MuonAdamW([{"params": [nn.Parameter(torch.zeros(4, 4))], "parts": 3}])
    with pytest.raises(ValueError, match=r"shape \[4\]"):
        MuonAdamW([{"params": [nn.Parameter(torch.zeros(4))], "parts": 1}])


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_shards_are_refused(monkeypatch, variable, name):
    refuse_shards("optimizer: muon")
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match=f"`optimizer: muon` needs every matrix whole, and {name} shards them"):
        refuse_shards("optimizer: muon")


def test_muon_keeps_one_mean_of_each_matrix():
    model = ImageGPTForCausalImageModeling(tiny_config())
    optimizer = MuonAdamW(muon_groups(model, 0.02))
    model(labels=torch.zeros(1, 12, dtype=torch.long)).loss.backward()
    optimizer.step()
    means = [tensor for state in optimizer.state.values() for name, tensor in state.items() if name != "step"]
    setting = TrainingSetting(images=1, optimizer="muon")
    assert sum(tensor.nbytes for tensor in means) == training_memory(model.config, setting).optimizer


def test_a_loaded_state_goes_on_as_if_nothing_had_been():
    def model_and_optimizer() -> tuple[nn.Module, MuonAdamW]:
        torch.manual_seed(0)
        model = ImageGPTForCausalImageModeling(tiny_config())
        return model, MuonAdamW(muon_groups(model, 0.02), lr=0.01)

    def steps(model: nn.Module, optimizer: MuonAdamW, seeds: range) -> None:
        for seed in seeds:
            tokens = torch.randint(model.config.num_values, (2, 12), generator=torch.Generator().manual_seed(seed))
            model(labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    whole, optimizer = model_and_optimizer()
    before = {name: weight.clone() for name, weight in whole.state_dict().items()}
    steps(whole, optimizer, range(6))
    assert all((weight != before[name]).any() for name, weight in whole.state_dict().items())

    first, optimizer = model_and_optimizer()
    steps(first, optimizer, range(3))
    second, resumed = model_and_optimizer()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    steps(second, resumed, range(3, 6))
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name
    assert math.isfinite(sum(weight.sum().item() for weight in second.state_dict().values()))
