"""Windows in rows of the image: which pixels are in them, in which blocks they are, and what can't be asked for."""

import dataclasses

import pytest
import torch
from tiny_models import random_tokens, randomize_, tiny_config

from hf_igpt import ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling
from hf_igpt.configuration_igpt import FULL, SLIDING
from hf_igpt.data.options import token_layout
from hf_igpt.training.arguments import PretrainArguments
from hf_igpt.training.attention_windows import attention_fields
from hf_igpt.training.pretraining import model_config


def one_block(head, channels: int, rows: int):
    """6 rows of 4 cells, one block with a window."""
    windows = attention_fields(rows, 0, 1, (6, 4), channels)
    config = tiny_config(image_size=[6, 4], num_channels=channels, num_hidden_layers=1, **windows)
    return randomize_(head(config)).double().eval()


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_pixel_is_predicted_from_all_of_the_pixel_so_many_rows_above_and_what_follows_it(rows, channels):
    model = one_block(ImageGPTForCausalImageModeling, channels, rows)
    tokens = random_tokens(model.config, batch=1)
    before = model(labels=tokens).logits[0]
    pixel = rows * 4 + 2  # the first in whose column there is a pixel so many rows above
    pixel_above = pixel - rows * 4
    predicted = slice(pixel * channels, (pixel + 1) * channels)
    for channel in range(channels):
        moved = model(labels=changed(tokens, pixel_above * channels + channel)).logits[0] != before
        assert moved[predicted][-1].any(), "the last channel sees every channel of the pixel above"
    moved = model(labels=changed(tokens, pixel_above * channels - 1)).logits[0] != before
    assert not moved[predicted][-1].any(), "and nothing before it"
    assert moved[: pixel_above * channels + channels].any()


@torch.no_grad()
def test_a_masked_model_sees_as_many_rows_above_and_below():
    model = one_block(ImageGPTForMaskedImageModeling, 1, 2)
    tokens = random_tokens(model.config, batch=1)
    before = model(input_ids=tokens).logits[0]
    seen = [bool((model(input_ids=changed(tokens, i)).logits[0] != before)[11].any()) for i in range(24)]
    assert [i for i, is_seen in enumerate(seen) if is_seen] == list(range(11 - 8, 11 + 8 + 1))


def changed(tokens: torch.Tensor, position: int) -> torch.Tensor:
    tokens = tokens.clone()
    tokens[0, position] = (tokens[0, position] + 5) % 10
    return tokens


@pytest.mark.parametrize(
    ("every", "full"), [(3, [2, 5]), (2, [1, 3, 5]), (6, [5]), (4, [3]), (0, [])], ids=lambda value: str(value)
)
def test_every_so_many_blocks_one_is_full(every, full):
    fields = attention_fields(4, every, 6, (16, 16))
    assert fields["layer_types"] == [FULL if layer in full else SLIDING for layer in range(6)]
    assert fields["sliding_window"] == 64
    assert attention_fields(None, every, 6, (16, 16)) == {}


@pytest.mark.parametrize(
    ("rows", "every", "message"),
    [
        (16, 3, "`attention_window_rows` must be below the 16 rows of the image, got 16"),
        (4, 1, "`full_attention_every` must be 0 or from 2 to the model's 6 blocks, got 1"),
        (4, 7, "from 2 to the model's 6 blocks, got 7"),
    ],
)
def test_windows_without_effect_are_refused(rows, every, message):
    with pytest.raises(ValueError, match=message):
        attention_fields(rows, every, 6, (16, 16))


def test_recipes_give_windows_to_models_of_a_preset_and_of_given_sizes():
    arguments = PretrainArguments(preset="igpt-s", attention_window_rows=8)
    config = model_config(arguments, token_layout(arguments))
    assert (config.num_hidden_layers, config.layer_types.count(FULL), config.sliding_window) == (24, 8, 256)
    arguments = dataclasses.replace(arguments, preset=None, num_hidden_layers=5, full_attention_every=0)
    assert model_config(arguments, token_layout(arguments)).layer_types == [SLIDING] * 5
    arguments = dataclasses.replace(arguments, attention_window_rows=None)
    assert model_config(arguments, token_layout(arguments)).layer_types is None
