"""A kill while something is saved over what was there: the old or the new, or nothing that loads, never a mixture."""

import contextlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_storage import die, killed
from tiny_models import tiny_causal

from hf_igpt import (
    IGPTImageProcessor,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTVQVAEConfig,
    ImageGPTVQVAEModel,
)


CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def model(eps: float, seed: int) -> ImageGPTForCausalImageModeling:
    return tiny_causal(torch.float32, seed, layer_norm_eps=eps)


def processor(seed: int) -> IGPTImageProcessor:
    palette = np.random.default_rng(seed).uniform(0, 255, (10, 3))
    return IGPTImageProcessor(size={"height": 3, "width": 4}, palette=palette)


def die_at(deadly: int, folder: Path) -> None:
    """Kills this process before the n-th operation that changes something below the folder."""
    seen = itertools.count()

    def watch(event: str, arguments: tuple) -> None:
        if event not in CHANGES or not isinstance(arguments[0], (str, os.PathLike)):
            return
        path = os.path.abspath(arguments[0])
        reads = event == "open" and (not isinstance(arguments[1], str) or set(arguments[1]) <= set("rb"))
        if path.startswith(str(folder)) and not reads and next(seen) == deadly:
            die()

    sys.addaudithook(watch)
    # safetensors writes from native code, which no hook sees.
    save = transformers.modeling_utils.safe_save_file

    def watched_save(tensors, path, **options) -> None:
        if next(seen) == deadly:
            Path(path).write_bytes(b"\x10" * 20)
            die()
        save(tensors, path, **options)
        if next(seen) == deadly:
            die()

    transformers.modeling_utils.safe_save_file = watched_save


def outcomes(folder: Path, save: Callable[[], object], look: Callable[[], object]) -> list:
    """What is there after a kill at each operation of `save`, and last without a kill."""
    old = folder.with_name("old")
    shutil.copytree(folder, old)
    found = []
    for deadly in itertools.count():

        def kill_or_save(deadly: int = deadly) -> None:
            die_at(deadly, folder)
            save()

        status = killed(kill_or_save)
        found.append(look())
        if status == 0:
            return found
        shutil.rmtree(folder)
        shutil.copytree(old, folder)


def look_at_model(folder: Path) -> tuple[float, float] | str:
    """Config and weights of what loads, by a number each."""
    with contextlib.suppress(OSError, ValueError):
        loaded = ImageGPTForCausalImageModeling.from_pretrained(folder)
        return loaded.config.layer_norm_eps, loaded.lm_head.weight.sum().item()
    return "nothing"


@pytest.fixture(autouse=True)
def without_code(monkeypatch):
    """Nor the copies of it, which are most of the operations."""
    for saved in (
        ImageGPTForCausalImageModeling,
        ImageGPTConfig,
        ImageGPTVQVAEConfig,
        ImageGPTVQVAEModel,
        IGPTImageProcessor,
    ):
        monkeypatch.setattr(saved, "_auto_class", None)


@pytest.mark.parametrize("before", ["one file", "shards"])
@pytest.mark.parametrize("after", ["one file", "shards"])
def test_a_kill_leaves_no_new_config_with_old_weights(tmp_path, before, after):
    sizes = {"one file": {}, "shards": {"max_shard_size": "30KB"}}
    folder = tmp_path / "model"
    first, second = model(1e-5, 0), model(1e-3, 1)
    first.save_pretrained(folder, **sizes[before])
    assert len(list(folder.glob("*.safetensors"))) == (1 if before == "one file" else 2)
    old, new = ((each.config.layer_norm_eps, each.lm_head.weight.sum().item()) for each in (first, second))
    assert look_at_model(folder) == old
    found = outcomes(folder, lambda: second.save_pretrained(folder, **sizes[after]), lambda: look_at_model(folder))
    assert set(found) == {old, new, "nothing"} and len(found) > 10
    assert found == sorted(found, key=[old, "nothing", new].index)


def test_what_a_kill_left_is_cleared_by_the_next_save_and_other_files_stay(tmp_path):
    folder = tmp_path / "model"
    first, second = model(1e-5, 0), model(1e-3, 1)
    first.save_pretrained(folder)
    (folder / "notes.txt").write_text("mine")

    def save_until_the_config_is_gone() -> None:
        os.replace = lambda *_: die()
        second.save_pretrained(folder)

    assert killed(save_until_the_config_is_gone) < 0
    assert look_at_model(folder) == "nothing"
    whole = folder / ".partial-save" / "model"
    assert look_at_model(whole) == (1e-3, second.lm_head.weight.sum().item()), "what was saved is there"
    second.save_pretrained(folder)
    assert look_at_model(folder) == look_at_model(folder) == (1e-3, second.lm_head.weight.sum().item())
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "notes.txt",
    ]


def test_a_failed_save_keeps_the_old_model(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    model(1e-5, 0).save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def disk_full(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        model(1e-3, 1).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_one_file_of_weights_does_not_stay_beside_new_shards(tmp_path):
    """It would be read in their place, without any kill."""
    first, second = model(1e-5, 0), model(1e-3, 1)
    first.save_pretrained(tmp_path)
    second.save_pretrained(tmp_path, max_shard_size="30KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert look_at_model(tmp_path) == (1e-3, second.lm_head.weight.sum().item())


@pytest.mark.parametrize("what", ["config", "image processor"])
def test_a_kill_leaves_the_old_or_the_new_file(tmp_path, what):
    folder = tmp_path / "saved"
    if what == "config":
        first, second = (ImageGPTConfig(layer_norm_eps=eps) for eps in (1e-5, 1e-3))
    else:
        first, second = processor(0), processor(1)

    def look() -> str:
        loaded = type(first).from_pretrained(folder)
        return json.dumps(loaded.to_dict() | {"_name_or_path": None})

    answer = first.save_pretrained(folder)
    assert answer in (None, [str(folder / "preprocessor_config.json")])
    old = look()
    found = outcomes(folder, lambda: second.save_pretrained(folder), look)
    assert len(found) > 3 and found[0] == old and found[-1] != old
    assert found == [old] * found.count(old) + [found[-1]] * found.count(found[-1])
    assert second.save_pretrained(folder) == answer


def codes(seed: int) -> IGPTImageProcessor:
    torch.manual_seed(seed)
    sizes = {"downsampling": 2, "codebook_size": 5, "code_size": 3, "hidden_size": 4, "num_residual_blocks": 0}
    vqvae = ImageGPTVQVAEModel(ImageGPTVQVAEConfig(**sizes))
    return IGPTImageProcessor(size=4, token_kind="vqvae", vqvae=vqvae)


@pytest.mark.parametrize("kinds", ["codes, codes", "palette, codes", "codes, palette", "vqvae, codes"])
def test_a_kill_leaves_no_processor_with_the_vqvae_of_another(tmp_path, kinds):
    folder, (first, second) = tmp_path / "saved", kinds.split(", ")
    new = codes(1) if second == "codes" else processor(1)
    if first == "vqvae":
        codes(0).vqvae.save_pretrained(folder / "vqvae")
        old = "nothing"
    else:
        saved = codes(0) if first == "codes" else processor(0)
        saved.save_pretrained(folder)
        old = saved.token_hash

    def look() -> str:
        with contextlib.suppress(OSError):
            return IGPTImageProcessor.from_pretrained(folder).token_hash
        return "nothing"

    found = outcomes(folder, lambda: new.save_pretrained(folder), look)
    assert len(found) > 3 and found[0] == old and found[-1] == new.token_hash
    assert found == sorted(found, key=[old, "nothing", new.token_hash].index)
    assert ("nothing" in found) == (kinds in ("codes, codes", "vqvae, codes"))


def test_load_what_was_saved_over_itself(tmp_path):
    """The weights may be mapped from the very file that is replaced."""
    model(1e-5, 0).save_pretrained(tmp_path)
    loaded = ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    expected = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    loaded.save_pretrained(tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
