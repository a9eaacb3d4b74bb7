"""Pretraining that goes on from a checkpoint, at another size too: positions, what must agree, a whole run."""

import gc
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import random_tokens, tiny_causal, tiny_config, tiny_masked

from hf_igpt import IGPTImageProcessor, ImageGPTForCausalImageModeling
from hf_igpt.training import initial_weights
from hf_igpt.training.arguments import PretrainArguments
from hf_igpt.training.initial_weights import (
    InitialWeights,
    copy_weights,
    load_initial_weights,
    resample_positions,
)
from hf_igpt.training.pretraining import pretrain
from hf_igpt.training.trainer import IGPTTrainer


sys.path.append(str(Path(__file__).parents[1] / "commands"))
from tiny_recipe import TINY, write_images  # noqa: E402


def plane(config, slope=(1.0, 10.0, 100.0)) -> torch.Tensor:
    """Positions (tokens, 1) that are a linear function of row, column (from 0 to 1 over the image) and channel."""
    (height, width), channels = config.grid, config.num_channels
    rows = (torch.arange(height) + 0.5)[:, None, None] / height
    columns = (torch.arange(width) + 0.5)[None, :, None] / width
    values = slope[0] * rows + slope[1] * columns + slope[2] * torch.arange(channels)
    return values.reshape(-1, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("is_causal", [True, False])
def test_positions_keep_their_place_in_the_image_and_their_channel(channels, is_causal):
    old = tiny_config(image_size=[8, 8], num_channels=channels, is_causal=is_causal)
    new = tiny_config(image_size=[16, 24], num_channels=channels, is_causal=is_causal)
    resampled = resample_positions(plane(old), old, new).reshape(16, 24, channels)
    # Away from the edges, which bicubic interpolation continues flat, to a twentieth of an old cell.
    inner = (slice(4, -4), slice(6, -6))
    torch.testing.assert_close(resampled[inner], plane(new).reshape(16, 24, channels)[inner], atol=0.06, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_smaller_grid_averages_its_positions_and_says_so(channels, caplog):
    old = tiny_config(image_size=[16, 24], num_channels=channels, is_causal=False)
    new = tiny_config(image_size=[4, 6], num_channels=channels, is_causal=False)
    resampled = resample_positions(plane(old), old, new).reshape(4, 6, channels)
    inner = (slice(1, -1), slice(1, -1))
    torch.testing.assert_close(resampled[inner], plane(new).reshape(4, 6, channels)[inner], atol=0.06, rtol=0)
    assert "positions of a grid of 16 x 24 are averaged for one of 4 x 6" in caplog.text
    # What changes from cell to cell is averaged away, not picked at random.
    noise = torch.arange(16 * 24 * channels).view(16, 24, channels)[..., :1].sum(-1, keepdim=True) % 2
    noise = noise.expand(16, 24, channels).reshape(-1, 1).float()
    assert (resample_positions(noise, old, new) - 0.5).abs().max() < 0.1


def test_the_start_tokens_position_is_kept_and_mixes_with_no_other():
    old, new = tiny_config(image_size=4), tiny_config(image_size=8)
    positions = torch.randn(16, 5)
    resampled = resample_positions(positions, old, new)
    assert torch.equal(resampled[0], positions[0])
    changed = positions.clone()
    changed[0] += 7
    assert torch.equal(resample_positions(changed, old, new)[1:], resampled[1:])
    masked = [tiny_config(image_size=size, is_causal=False) for size in (4, 8)]
    assert not torch.equal(resample_positions(changed, *masked)[1], resample_positions(positions, *masked)[1])


def test_the_same_grid_changes_nothing_and_other_channels_are_refused():
    config = tiny_config()
    positions = torch.randn(12, 5)
    assert torch.equal(resample_positions(positions, config, config), positions)
    with pytest.raises(ValueError, match="`num_channels` must stay 1, got 3"):
        resample_positions(positions, config, tiny_config(image_size=[1, 4], num_channels=3))


@pytest.mark.parametrize("build", [tiny_causal, tiny_masked])
def test_a_model_of_the_same_grid_computes_the_same_and_of_a_larger_one_has_all_weights(build):
    model = build(torch.float32, image_size=4)
    initial = InitialWeights(model, None, "")
    same = type(model)(tiny_config(image_size=4)).eval()
    copy_weights(initial, same)
    tokens = random_tokens(model.config)
    inputs = {"labels": tokens} if model.config.is_causal else {"input_ids": tokens, "bool_masked_pos": tokens < 5}
    assert torch.equal(same(**inputs).logits, model(**inputs).logits)
    windows = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    larger = type(model)(tiny_config(image_size=8, **windows))
    copy_weights(initial, larger)
    for name, weight in larger.state_dict().items():
        assert "wpe" in name or torch.equal(weight, model.state_dict()[name]), name


def save_checkpoint(folder: Path) -> Path:
    palette = np.random.default_rng(3).integers(0, 256, (10, 3))
    model = tiny_causal(torch.float32, image_size=4)
    model.save_pretrained(folder)
    IGPTImageProcessor(size=4, palette=palette).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", 48), ("num_hidden_layers", 1), ("num_attention_heads", 2), ("is_causal", False)],
)
def test_another_model_is_refused(tmp_path, field, value):
    save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=f"`init_from`: .* has `{field}` .*, the model of this run {value}"):
        load_initial_weights(str(tmp_path), lambda tokens: tiny_config(image_size=8, **{field: value}))


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`init_from`: .* is no checkpoint"):
        load_initial_weights(str(tmp_path / "nowhere"), lambda tokens: tiny_config())


def held_in_training(monkeypatch) -> list[bool]:
    """Whether the model to begin with is still in memory, noted whenever a training starts."""
    models, held = [], []
    load, train = initial_weights.load_initial_weights, IGPTTrainer.train

    def watched_load(*args):
        initial = load(*args)
        models.append(weakref.ref(initial.model))
        return initial

    def watched_train(self, **kwargs):
        gc.collect()
        held.append(models[-1]() is not None)
        return train(self, **kwargs)

    monkeypatch.setattr(initial_weights, "load_initial_weights", watched_load)
    monkeypatch.setattr(IGPTTrainer, "train", watched_train)
    return held


def test_a_run_goes_on_at_twice_the_size_with_the_palette_of_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "small")
    write_images(tmp_path, 40)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    options = TINY | sizes | {"dataset_name": "images", "image_size": [8], "num_colors": 10, "max_steps": 1}
    options |= {"learning_rate": 1e-9, "warmup_epochs": 0.0, "dropout": 0.0}
    del options["max_images"]
    small = ImageGPTForCausalImageModeling.from_pretrained("small")
    # The MLP of a recipe is four times as wide as the model.
    with pytest.raises(ValueError, match="has `intermediate_size` 40, the model of this run 96"):
        pretrain(PretrainArguments(**options, init_from="small"))
    small = tiny_causal(torch.float32, image_size=4, intermediate_size=96)
    small.save_pretrained("small")
    with pytest.raises(ValueError, match="`num_colors` is 17, but the palette of small has 10"):
        pretrain(PretrainArguments(**options | {"num_colors": 17}, init_from="small"))
    windows = {"attention_window_rows": 2, "full_attention_every": 2}
    held = held_in_training(monkeypatch)
    results = pretrain(PretrainArguments(**options, **windows, init_from="small"))
    assert held == [False]
    model = ImageGPTForCausalImageModeling.from_pretrained("out/model")
    processor, palette = (IGPTImageProcessor.from_pretrained(name) for name in ("out/model", "small"))
    assert (processor.grid, processor.token_hash) == ((8, 8), palette.token_hash)
    assert model.config.layer_types == ["sliding_attention", "full_attention"] and model.config.sliding_window == 16
    expected = small.state_dict()
    positions = resample_positions(expected["transformer.wpe.weight"], small.config, model.config)
    expected["transformer.wpe.weight"] = positions
    torch.testing.assert_close(dict(model.state_dict()), dict(expected), atol=1e-5, rtol=0)
    assert results["arguments"]["init_from"] == "small"
    other = IGPTImageProcessor(size=8, palette=np.random.default_rng(4).integers(0, 256, (10, 3)))
    other.save_pretrained("other")
    with pytest.raises(ValueError, match="`init_from`: the tokens of small are of palette"):
        pretrain(PretrainArguments(**options | {"output_dir": "second"}, init_from="small", palette="other"))
