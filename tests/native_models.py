"""Tiny models of transformers' own ImageGPT with every parameter random, and how to compare them with ours."""

import json

import torch
import transformers
from tiny_models import random_tokens, randomize_
from transformers.models.imagegpt import modeling_imagegpt as native

from hf_igpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel


# Heads of 4: before 5.21 transformers' ImageGPT divides by the square root of the head size rounded down.
SIZES = {"vocab_size": 11, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 6, "num_labels": 3}
HEADS = {
    "causal": (native.ImageGPTForCausalImageModeling, ImageGPTForCausalImageModeling),
    "classifier": (native.ImageGPTForImageClassification, ImageGPTForImageClassification),
    "backbone": (native.ImageGPTModel, ImageGPTModel),
}


def native_model(head="causal", dtype=torch.float32, **overrides):
    """In evaluation mode, with every parameter random, biases and norms too."""
    config = transformers.ImageGPTConfig(**{**SIZES, **overrides})
    return randomize_(HEADS[head][0](config)).to(dtype).eval()


def outputs_of(model, tokens) -> torch.Tensor:
    outputs = model(input_ids=tokens)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def assert_equal_outputs(ours, theirs, atol=2e-5) -> None:
    tokens = random_tokens(ours.config)
    expected = outputs_of(theirs, tokens)
    assert (expected[0] - expected[1]).abs().max() > 0.05
    torch.testing.assert_close(outputs_of(ours, tokens), expected, atol=atol, rtol=0)


def edit_config(folder, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
