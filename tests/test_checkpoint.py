"""Reading weights: the file layouts there are, files that would run code, configs that are about other weights."""

import json
import math
import pickle

import pytest
import torch
from native_models import SIZES, assert_equal_outputs, edit_config, native_model

from hf_igpt import ImageGPTConfig, ImageGPTForCausalImageModeling


def small_config() -> ImageGPTConfig:
    sizes = {name: value for name, value in SIZES.items() if name != "num_labels"}
    return ImageGPTConfig(**sizes)


def save_as(model, folder, layout: str) -> None:
    """The layouts that checkpoints on the Hub have."""
    if layout == "sharded":
        model.save_pretrained(folder, max_shard_size="10KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
        return
    model.save_pretrained(folder)
    if layout == "safetensors":
        return
    (folder / "model.safetensors").unlink()
    state = dict(model.state_dict())
    if layout == "old bin":
        mask = torch.ones(16, 16, dtype=torch.bool).tril().view(1, 1, 16, 16)
        for layer in range(2):
            state[f"transformer.h.{layer}.attn.bias"] = mask
            state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    if layout == "sharded bin":
        names = sorted(state)
        shards = {"pytorch_model-00001-of-00002.bin": names[:10], "pytorch_model-00002-of-00002.bin": names[10:]}
        for file, part in shards.items():
            torch.save({name: state[name] for name in part}, folder / file)
        weight_map = {name: file for file, part in shards.items() for name in part}
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        return
    torch.save(state, folder / "pytorch_model.bin")


@pytest.mark.parametrize("layout", ["safetensors", "sharded", "bin", "old bin", "sharded bin"])
def test_every_file_layout_is_read(tmp_path, layout):
    theirs = native_model()
    save_as(theirs, tmp_path, layout)
    ours, info = ImageGPTForCausalImageModeling.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_equal_outputs(ours, theirs)


def test_a_variant_and_a_subfolder_are_read(tmp_path):
    theirs = native_model()
    theirs.save_pretrained(tmp_path / "inner", variant="fp32")
    ours = ImageGPTForCausalImageModeling.from_pretrained(tmp_path, subfolder="inner", variant="fp32")
    assert_equal_outputs(ours, theirs)
    with pytest.raises(OSError, match="has no weights"):
        ImageGPTForCausalImageModeling.from_pretrained(tmp_path, subfolder="inner")


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin"])
@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("options", [{}, {"weights_only": False}])
def test_a_malicious_pickle_is_refused_without_being_run(tmp_path, file, is_native, options):
    marker, folder = tmp_path / "marker", tmp_path / "model"
    model = native_model() if is_native else ImageGPTForCausalImageModeling(small_config())
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Payload(marker)}, folder / file)
    if "of" in file:
        index = {"metadata": {}, "weight_map": {"transformer.wte.weight": file}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(pickle.UnpicklingError, match="[Ww]eights.only"):
        ImageGPTForCausalImageModeling.from_pretrained(folder, **options)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": 3}, "num_hidden_layers=3, but the weights have 2"),
        ({"n_layer": 4000}, "num_hidden_layers=4000, but the weights have 2"),
        ({"n_embd": 48}, "hidden_size=48, but the weights have 24"),
        ({"n_embd": 131072, "n_head": 8}, "hidden_size=131072, but the weights have 24"),
        ({"n_positions": 16_777_216}, "n_positions=16777216, but the weights have 16"),
        ({"vocab_size": 1_000_000}, "vocab_size=1000000, but the weights have 11"),
        ({"n_inner": 2_000_000}, "intermediate_size=2000000, but the weights have 96"),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_native", [True, False])
def test_a_config_that_lies_about_its_weights_is_refused_before_memory_is_taken(tmp_path, is_native, change, message):
    model = native_model() if is_native else ImageGPTForCausalImageModeling(small_config())
    model.save_pretrained(tmp_path)
    if not is_native:
        change = {ImageGPTConfig.attribute_map.get(name, name): value for name, value in change.items()}
        side = math.isqrt(change.pop("n_positions", 16))
        change |= {"bos_token_id": None, "image_size": side}
    edit_config(tmp_path, **change)
    with pytest.raises(ValueError, match=message) as error, no_allocation_above(1 << 20):
        ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


class no_allocation_above(torch.utils._python_dispatch.TorchDispatchMode):  # noqa: N801 (used like a function)
    """Fails at the first real tensor larger than `limit` bytes."""

    def __init__(self, limit: int):
        super().__init__()
        self.limit = limit

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.device.type != "meta":
            assert output.nbytes <= self.limit, f"{function} took {output.nbytes} bytes"
        return output
