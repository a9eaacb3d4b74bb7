"""Weight decay reaches the matrices of the blocks and the heads, and nothing else."""

import pytest
import torch
from tiny_models import tiny_config
from transformers import TrainingArguments

from hf_igpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from hf_igpt.training.trainer import IGPTTrainer


@pytest.mark.parametrize("head", [ImageGPTForCausalImageModeling, ImageGPTForImageClassification])
def test_trap_weight_decay_shrinks_norms_and_embeddings(tmp_path, head):
    """transformers' Trainer knows norms by `nn.LayerNorm` and by name: it decays `ln_1`, `wte` and `wpe`."""
    model = head(tiny_config(use_bias=True))
    arguments = TrainingArguments(str(tmp_path), weight_decay=0.1, report_to="none", use_cpu=True, learning_rate=0.1)
    trainer = IGPTTrainer(model, arguments)
    matrices = [
        f"transformer.h.{layer}.{name}.weight"
        for layer in range(2)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    heads = [name for name in ("lm_head.weight", "score.weight") if name in model.state_dict()]
    assert sorted(trainer.get_decay_parameter_names(model)) == sorted([*matrices, *heads])

    torch.nn.init.ones_(model.lm_head.weight)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = trainer.create_optimizer()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        shrinks = name in [*matrices, "lm_head.weight"]
        torch.testing.assert_close(parameter.detach(), before[name] * (0.99 if shrinks else 1), msg=name)
