"""The demo with checkpoints of RGB levels and of a VQ-VAE's codes."""

import numpy as np
import pytest
from PIL import Image
from tiny_demo import marked, pictures, text_of
from tiny_models import code_processor, randomize_, tiny_config

from hf_igpt import IGPTImageProcessor, ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling
from hf_igpt.commands.demo import open_checkpoint
from hf_igpt.demo import handlers
from hf_igpt.demo.likelihood import cell_bits
from hf_igpt.plots import MISSING


def make_processor(kind: str) -> IGPTImageProcessor:
    if kind == "rgb":
        return IGPTImageProcessor(size=4, token_kind="rgb")
    return code_processor(8, 8, num_codes=13)


@pytest.fixture(scope="module", params=[(kind, head) for kind in ("rgb", "vqvae") for head in ("causal", "masked")])
def checkpoint(request, tmp_path_factory):
    kind, head = request.param
    folder = tmp_path_factory.mktemp(kind) / "model"
    processor = make_processor(kind)
    config = tiny_config(
        token_kind=kind,
        vocab_size=processor.num_values + 1,
        num_channels=processor.num_channels,
        image_size=list(processor.grid),
        pooler_layer=None,
    )
    heads = {"causal": ImageGPTForCausalImageModeling, "masked": ImageGPTForMaskedImageModeling}
    randomize_(heads[head](config)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return open_checkpoint(str(folder), "cpu")


def test_every_view(checkpoint):
    height, width = checkpoint.processor.size["height"], checkpoint.processor.size["width"]
    assert checkpoint.processor.description in checkpoint.summary()
    chosen = handlers.choose_example(checkpoint, 0)
    assert pictures(chosen.view)[1].shape[:2] == (height, width)
    assert f"as the model sees it, {height} x {width}" in text_of(chosen.view)
    surprise = handlers.surprise_view(checkpoint, chosen.image)
    assert pictures(surprise)[0].shape[:2] == checkpoint.grid
    is_codes = checkpoint.processor.token_kind == "vqvae"
    assert ("surprise at each " + ("cell of 2 x 2 pixels" if is_codes else "pixel") + ", 0") in text_of(surprise)
    cell = "cell" if is_codes else "pixel"
    assert (f"All {cell}s: " if checkpoint.is_causal else f"each {cell} scored") in text_of(surprise)
    assert f"all colours, {height} x {width}" in text_of(handlers.palette_view(checkpoint, chosen.image))
    assert checkpoint.processor.description in text_of(handlers.palette_view(checkpoint, chosen.image))
    assert len(pictures(handlers.neighbours_view(checkpoint, chosen.image, 1))) == 9


@pytest.mark.parametrize("checkpoint", [("rgb", "masked"), ("vqvae", "masked")], indirect=True)
def test_a_masked_model_is_scored_with_whole_cells_hidden(checkpoint):
    seen = []
    hook = checkpoint.model.register_forward_pre_hook(
        lambda model, _, given: seen.append(given["bool_masked_pos"].clone()), with_kwargs=True
    )
    cell_bits(checkpoint, checkpoint.examples[0].image)
    hook.remove()
    (hidden,) = seen
    cells = hidden.view(len(hidden), -1, checkpoint.processor.num_channels)
    assert (cells.all(dim=2) == cells.any(dim=2)).all()
    assert (cells[..., 0].sum(dim=0) == len(hidden) // 2).all() and (cells[..., 0].sum(dim=1) == 8).all()


def test_drawing_goes_from_grey_to_whole_images_and_keeps_what_is_given(checkpoint):
    image = Image.fromarray(np.asarray(marked(3, 8)))
    numbers = {"num_images": 2, "temperature": 1, "top_k": 0, "seed": 0, "num_steps": 4}
    rows = checkpoint.grid[0] // 2
    parts = list(handlers.generate(checkpoint, image, "upper rows", rows, None, numbers, lambda: False))
    first, last = pictures(parts[0][0])[0], pictures(parts[-1][0])[0]
    kept = rows * checkpoint.processor.cell_size
    grey = (first == MISSING).all(axis=2)
    assert grey[kept:].all() and not grey[:kept].any() and "Done: 2 images" in parts[-1][1]
    assert not (last == MISSING).all(axis=2).any()
    if checkpoint.processor.token_kind == "rgb":
        assert (last[:kept] == np.asarray(image.resize((4, 4)))[0, 0]).all()
