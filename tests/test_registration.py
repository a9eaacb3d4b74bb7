"""transformers' Auto classes find our classes for `igpt`, and its own for `imagegpt` as before."""

import importlib
import subprocess
import sys

import pytest
import torch
import transformers
from tiny_models import tiny_config
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageClassification

import hf_igpt
from hf_igpt import (
    AutoModelForCausalImageModeling,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTModel,
)


OURS = [
    (AutoModel, ImageGPTModel),
    (AutoModelForCausalLM, ImageGPTForCausalImageModeling),
    (AutoModelForCausalImageModeling, ImageGPTForCausalImageModeling),
    (AutoModelForImageClassification, ImageGPTForImageClassification),
]
NATIVE_SIZES = {"vocab_size": 11, "n_positions": 16, "n_embd": 24, "n_layer": 1, "n_head": 6}


@pytest.mark.parametrize(("auto", "expected"), OURS)
def test_auto_classes_load_our_checkpoints_whatever_head_saved_them(tmp_path, auto, expected):
    assert type(auto.from_config(tiny_config())) is expected
    for head in (ImageGPTModel, ImageGPTForCausalImageModeling, ImageGPTForImageClassification):
        saved = head(tiny_config())
        saved.save_pretrained(tmp_path / head.__name__)
        loaded = auto.from_pretrained(tmp_path / head.__name__)
        assert type(loaded) is expected
        backbone = getattr(loaded, "transformer", loaded)
        assert torch.equal(backbone.wte.weight, getattr(saved, "transformer", saved).wte.weight)
    assert type(AutoConfig.from_pretrained(tmp_path / "ImageGPTModel")) is ImageGPTConfig


def test_native_configs_still_give_native_classes(tmp_path):
    config = transformers.ImageGPTConfig(**NATIVE_SIZES)
    config.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is transformers.ImageGPTConfig
    assert type(AutoModel.from_config(config)) is transformers.ImageGPTModel
    classifier = AutoModelForImageClassification.from_config(config)
    assert type(classifier) is transformers.ImageGPTForImageClassification
    causal = AutoModelForCausalImageModeling.from_config(config)
    assert type(causal) is transformers.ImageGPTForCausalImageModeling
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForCausalLM.from_config(config)


CENSUS = """
import json, transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

def census():
    classes = {}
    for name in vars(modeling_auto):
        mapping = getattr(modeling_auto, name)
        if name.endswith("_MAPPING") and hasattr(mapping, "_load_attr_from_module"):
            if transformers.ImageGPTConfig in mapping:
                classes[name] = mapping[transformers.ImageGPTConfig].__module__
    return classes, sorted(CONFIG_MAPPING.keys())

before = census()
import hf_igpt
after = census()
assert before[0], "transformers has no ImageGPT"
assert before[0] == after[0], (before[0], after[0])
assert set(after[1]) - set(before[1]) == {"igpt", "igpt_vqvae"}, set(after[1]) ^ set(before[1])
"""


def test_importing_the_package_changes_nothing_for_transformers_own_imagegpt():
    subprocess.run([sys.executable, "-W", "ignore", "-c", CENSUS], check=True)


def test_the_package_can_be_reloaded():
    importlib.reload(hf_igpt)
    assert type(AutoModel.from_config(tiny_config())) is ImageGPTModel


def test_public_names_are_there():
    for name in hf_igpt.__all__:
        assert hasattr(hf_igpt, name)
    contract = {
        "AutoModelForCausalImageModeling",
        "ImageGPTConfig",
        "ImageGPTForCausalImageModeling",
        "ImageGPTForImageClassification",
        "ImageGPTModel",
    }
    assert contract <= set(hf_igpt.__all__)
