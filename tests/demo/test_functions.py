"""What the demo computes and says, without a browser and without Gradio."""

import functools
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_demo import ACCURACIES, HOSTILE, alternatives, huge_png, marked, pictures, png, text_of
from transformers import pipeline

from hf_igpt.demo import handlers, html
from hf_igpt.demo.checkpoints import Checkpoint, Library
from hf_igpt.demo.drawing import draw
from hf_igpt.demo.examples import sample_examples
from hf_igpt.demo.features import best_layer, nearest_neighbours
from hf_igpt.demo.inputs import (
    KEEP_FRAME,
    KEEP_ROWS,
    KEEP_UNPAINTED,
    MAX_SIDE,
    Settings,
    read_drawing,
    read_hole,
    read_region,
    read_settings,
    read_upload,
)
from hf_igpt.demo.likelihood import cell_bits, heat_map
from hf_igpt.demo.palettes import with_own_palettes
from hf_igpt.generation import sample
from hf_igpt.losses_igpt import token_nats
from hf_igpt.plots import MISSING


NUMBERS = {"num_images": 3, "temperature": 0.9, "top_k": 5, "seed": 7, "num_steps": 6}
SETTINGS = Settings(**NUMBERS)


def painted(*boxes, side: int = 80) -> dict:
    """What an editor gives where these boxes are painted."""
    layer = Image.new("RGBA", (side, side))
    for box in boxes:
        layer.paste((255, 0, 200, 255), box)
    return {"background": None, "layers": [layer], "composite": Image.new("RGB", (side, side))}


def lower_half() -> np.ndarray:
    return np.repeat(np.arange(8) >= 4, 8).reshape(8, 8)


# Drawing


def test_whole_images_are_those_of_the_sample_command(either):
    *_, last = draw(either, None, lower_half(), SETTINGS)
    expected = sample(either.model, 3, seed=7, **SETTINGS.generation(either))
    np.testing.assert_array_equal(last.tokens, expected)
    assert last.share == 1 and not last.hidden.any()


def test_completions_are_those_of_the_pipeline(either):
    image = either.examples[0].image
    *_, last = draw(either, image, lower_half(), SETTINGS)
    completer = pipeline("image-completion", model=either.model, image_processor=either.processor)
    expected = completer(image, rows_kept=4, num_images=3, seed=7, **SETTINGS.generation(either))
    for drawn, wanted in zip(last.pictures(either), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(wanted))
    assert len({drawn.tobytes() for drawn in last.pictures(either)}) == 3


def test_images_appear_bit_by_bit(either):
    parts = list(draw(either, either.examples[0].image, lower_half(), SETTINGS))
    shares = [part.share for part in parts]
    assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(set(shares))
    assert len(parts) == (5 if either.is_causal else 7)
    if either.is_causal:
        second = np.asarray(parts[1].pictures(either)[0])
        assert (second[5:] == MISSING).all() and (second[:5] != MISSING).any(axis=2).all()


def test_a_stop_stops_the_model(either, monkeypatch):
    calls = []
    forward = type(either.model).forward
    monkeypatch.setattr(
        type(either.model), "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    )
    parts = draw(either, None, lower_half(), SETTINGS, should_stop=lambda: len(calls) > 1)
    last = list(parts)[-1]
    assert 0 < last.share < 1
    assert len(calls) == (8 if either.is_causal else 2)


def test_generate_says_how_far_it_is_and_how_it_ended(either, monkeypatch):
    monkeypatch.setattr(handlers, "SECONDS_BETWEEN_VIEWS", 0)
    image = either.examples[0].image
    *before, (page, line) = handlers.generate(either, image, KEEP_ROWS, 4, None, NUMBERS, lambda: False)
    assert [text_of(shown) for _, shown in before][0].strip() == "Drawing: 0 % done."
    assert text_of(line).strip() == "Done: 3 images, seed 7."
    assert alternatives(page) == ["Drawn image 1", "Drawn image 2", "Drawn image 3"]
    assert len({shown for shown, _ in before}) == len(before)
    ((_, line),) = handlers.generate(either, image, KEEP_ROWS, 4, None, NUMBERS, lambda: True)
    assert "Stopped" in line


# What is kept


def test_regions(opened):
    causal, masked = opened["causal"], opened["masked"]
    np.testing.assert_array_equal(read_region(causal, KEEP_ROWS, 4, None), lower_half())
    hole = painted((20, 20, 30, 40), (61, 5, 64, 8))
    expected = np.zeros((8, 8), dtype=bool)
    expected[2:4, 2] = expected[0, 6] = True
    np.testing.assert_array_equal(read_region(masked, KEEP_UNPAINTED, None, hole), expected)
    after = np.arange(64).reshape(8, 8) >= 6
    np.testing.assert_array_equal(read_region(causal, KEEP_UNPAINTED, None, hole), after)
    assert read_region(masked, KEEP_FRAME, None, None).sum() == 16


@pytest.mark.parametrize("value", [None, {}, {"layers": []}, {"layers": [None]}, painted()])
def test_an_empty_hole(opened, value):
    with pytest.raises(ValueError, match="Nothing is painted: paint over the part"):
        read_hole(value, (8, 8))
    with pytest.raises(ValueError, match="Nothing is painted"):
        read_region(opened["masked"], KEEP_UNPAINTED, 1, value)


def test_an_empty_drawing():
    assert read_drawing(painted((0, 0, 9, 9))).size == (80, 80)
    for value in (None, {"composite": None, "layers": []}, painted()):
        with pytest.raises(ValueError, match="The canvas is empty"):
            read_drawing(value)


# Numbers out of range


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_images", 0, "Number of images must be a whole number from 1 to 16, got '0'"),
        ("num_images", 17, "from 1 to 16, got '17'"),
        ("num_images", 1.5, "from 1 to 16, got '1.5'"),
        ("num_images", None, "from 1 to 16, got 'None'"),
        ("temperature", 0, "Temperature must be a number from 0.1 to 2, got '0'"),
        ("temperature", math.nan, "Temperature must be a number from 0.1 to 2, got 'nan'"),
        ("temperature", math.inf, "got 'inf'"),
        ("temperature", "hot", "got 'hot'"),
        ("temperature", True, "got 'True'"),
        ("top_k", -1, "Top-k must be a whole number from 0 to 512, got '-1'"),
        ("seed", -1, "Seed must be a whole number from 0 to 2147483647, got '-1'"),
        ("seed", 2**31, "Seed must be"),
        ("num_steps", 0, "Steps must be a whole number from 1 to 64, got '0'"),
        ("num_steps", 65, "Steps must be"),
        ("seed", [1], "Seed must be"),
    ],
)
def test_numbers_out_of_range(opened, field, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_settings(opened["masked"], **(NUMBERS | {field: value}))


@pytest.mark.parametrize("rows", [-1, 8, math.nan, "4", None, 1e300])
def test_rows_out_of_range(opened, rows):
    with pytest.raises(ValueError, match="Rows kept must be a whole number from 0 to 7"):
        read_region(opened["causal"], KEEP_ROWS, rows, None)


def test_choices_from_fixed_lists(opened):
    library = Library(["a", "b"], lambda name: opened["causal"])
    assert library["a"] is library["a"] and list(library) == ["a", "b"]
    for name in ("c", "../a", "", None, ["a"], "https://example.com/model"):
        with pytest.raises(ValueError, match="Checkpoint must be one of a, b, got"):
            library[name]
    with pytest.raises(ValueError, match="What is kept must be one of upper rows"):
        read_region(opened["causal"], "everything", 1, None)
    for number in (-1, 8, None, True, "0"):
        with pytest.raises(ValueError, match="Example must be a whole number from 0 to 7"):
            handlers.choose_example(opened["causal"], number)
    for layer in (-1, 3, 0.5, None, math.nan):
        with pytest.raises(ValueError, match="Layer must be a whole number from 0 to 2"):
            nearest_neighbours(opened["causal"], marked(0), layer)


# Uploads


@functools.cache
def damaged() -> dict[str, bytes]:
    whole = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    return {
        "text": b"this is no image",
        "empty": b"",
        "vector": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "page": b"<html><body>hello</body></html>",
        "truncated": whole[: len(whole) // 2],
        "huge": huge_png(),
        "large": huge_png(5000),
    }


@pytest.mark.parametrize("name", ["text", "empty", "vector", "page", "truncated", "huge", "large"])
def test_files_that_cannot_be_used(tmp_path, opened, name):
    path = tmp_path / f"{name}.png"
    path.write_bytes(damaged()[name])
    with pytest.raises(ValueError, match="This file can't be used: .*million pixels") as caught:
        handlers.choose_upload(opened["causal"], str(path))
    assert str(tmp_path) not in str(caught.value) and "max_pixels=...)" not in str(caught.value)


def test_no_file_and_a_file_that_is_too_long(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="No file has arrived"):
        read_upload(None)
    monkeypatch.setattr("hf_igpt.demo.inputs.MAX_UPLOAD_BYTES", 10)
    (tmp_path / "long.png").write_bytes(b"x" * 11)
    with pytest.raises(ValueError, match="This file can't be used: it has more than"):
        read_upload(str(tmp_path / "long.png"))


def test_an_animation_gives_its_first_frame_and_large_images_are_made_smaller(tmp_path):
    frames = [marked(1), marked(2)]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert read_upload(str(tmp_path / "two.gif")).getpixel((0, 0)) == marked(1).getpixel((0, 0))
    marked(3, 2000).save(tmp_path / "large.png")
    assert read_upload(str(tmp_path / "large.png")).size == (MAX_SIDE, MAX_SIDE)
    Image.new("RGB", (3000, 1)).save(tmp_path / "line.png")
    assert read_upload(str(tmp_path / "line.png")).size == (MAX_SIDE, 1)


# Likelihood, palettes, features


def test_bits_of_a_next_pixel_model_add_up_to_its_loss(opened):
    checkpoint = opened["causal"]
    image = checkpoint.examples[1].image
    bits = cell_bits(checkpoint, image)
    tokens = checkpoint.processor([image], return_tensors="pt").input_ids
    with torch.inference_mode():
        output = checkpoint.model(labels=tokens)
    assert bits.shape == (8, 8) and bits.sum() == pytest.approx(float(output.loss) * 64 / math.log(2), rel=1e-5)
    nats = token_nats(output.logits, tokens)[0].view(8, 8).numpy()
    np.testing.assert_allclose(bits * math.log(2), nats, rtol=1e-5)


def test_bits_of_a_masked_model_are_of_hidden_pixels(opened):
    checkpoint = opened["masked"]
    image = checkpoint.examples[1].image
    bits = cell_bits(checkpoint, image)
    assert bits.shape == (8, 8) and (bits > 0).all()
    np.testing.assert_array_equal(cell_bits(checkpoint, image), bits)
    assert (cell_bits(checkpoint, checkpoint.examples[2].image) != bits).any()


def test_the_heat_map_is_bright_where_the_model_is_surprised(either):
    view = handlers.surprise_view(either, either.examples[0].image)
    (alternative,), (picture,) = alternatives(view), pictures(view)
    assert alternative.startswith("Heat map: surprise at each pixel, 0 (dark) to ") and picture.shape == (8, 8, 3)
    brightness = np.asarray(heat_map(np.arange(64.0).reshape(8, 8))).astype(int).sum(axis=2).ravel()
    assert (np.diff(brightness) >= 0).mean() > 0.9 and brightness[-1] > brightness[0] + 200
    assert np.asarray(heat_map(np.zeros((8, 8)))).shape == (8, 8, 3)
    assert handlers.surprise_view(either, None) == ""


def test_more_colours_lose_less():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8))
    quantized = with_own_palettes(image)
    assert [q.num_colors for q in quantized] == [2, 8, 32, 512]
    losses = [q.psnr for q in quantized]
    assert losses == sorted(losses) and losses[0] < 15 and losses[-1] > 25
    for q in quantized:
        assert len(np.unique(np.asarray(q.image).reshape(-1, 3), axis=0)) <= q.num_colors
    assert all(q.psnr == math.inf and q.num_colors == 1 for q in with_own_palettes(marked(3)))


def test_palette_view(either):
    view = handlers.palette_view(either, marked(3))
    texts = alternatives(view)
    assert len(texts) == 7 and "16 colours of the checkpoint's palette" in texts[0]
    assert "nothing lost" in texts[2]
    assert "Choose an image" in handlers.palette_view(either, None)


def test_the_probe_of_these_weights_is_shown(either):
    view = handlers.probe_view(either)
    assert alternatives(view) == ["Accuracy of a probe by layer: layer 0 50.0 %, layer 1 70.0 %, layer 2 60.0 %."]
    assert best_layer(either) == ACCURACIES.index(max(ACCURACIES))
    without = Checkpoint("x", either.model, either.processor)
    assert best_layer(without) == 1 and "no results of a probe" in handlers.probe_view(without)


def test_an_images_nearest_neighbour_is_itself(either):
    for number in (0, 5):
        near = nearest_neighbours(either, either.references[number].image, 1)
        assert near[0].example is either.references[number] and near[0].similarity == pytest.approx(1, abs=1e-5)
        assert len(near) == 8 and [n.similarity for n in near] == sorted((n.similarity for n in near), reverse=True)
    view = handlers.neighbours_view(either, either.references[0].image, 1)
    assert len(alternatives(view)) == 9 and "Nearest of 12 images" in view


def test_without_tokens_there_are_other_examples(opened):
    masked = opened["masked"]
    without = Checkpoint("x", masked.model, masked.processor)
    assert [example.caption for example in without.examples] == [example.caption for example in sample_examples()]
    assert len(without.examples) == 8 and without.references is without.examples
    assert handlers.choose_example(without, 7).image.mode == "RGB"


# Texts


def test_texts_are_escaped(either):
    caption = either.examples[0].caption
    assert HOSTILE in caption
    chosen = handlers.choose_example(either, 0)
    neighbours = handlers.neighbours_view(either, chosen.image, 0)
    gallery = html.buttons([html.Picture(chosen.image, caption, caption)])
    for page in (chosen.status, chosen.view, neighbours, gallery, html.problem(HOSTILE), html.message(HOSTILE)):
        assert "<script" not in page and "{{" not in page and "${" not in page
    assert HOSTILE in text_of(chosen.status) and HOSTILE in " ".join(alternatives(neighbours))


def test_every_picture_says_what_it_shows(either):
    assert len(alternatives(handlers.choose_example(either, 0).view)) == 2
