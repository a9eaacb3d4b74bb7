"""Three kinds of tokens behind one image processor, and what must not be mixed."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_models import random_tokens, randomize_, tiny_config, tiny_masked
from transformers import AutoImageProcessor

from hf_igpt import (
    IGPTImageProcessor,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTVQVAEConfig,
    ImageGPTVQVAEModel,
)
from hf_igpt.checks_igpt import check_processor
from hf_igpt.commands.checkpoints import load_checkpoint
from hf_igpt.data.masking import UNIFORM, Masking
from hf_igpt.data.token_store import check_tokens, tokens_info
from hf_igpt.data.tokenization import tokenize
from hf_igpt.generation_igpt import iterative_steps
from hf_igpt.plots import MISSING, hide_region
from hf_igpt.token_kinds_igpt import TOKEN_KINDS


PALETTE = np.random.default_rng(0).uniform(0, 255, (11, 3))
SIZE = {"height": 4, "width": 6}


def make_vqvae(seed: int = 0, **fields) -> ImageGPTVQVAEModel:
    torch.manual_seed(seed)
    sizes = {"downsampling": 2, "codebook_size": 13, "code_size": 4, "hidden_size": 8, "residual_size": 4}
    return ImageGPTVQVAEModel(ImageGPTVQVAEConfig(**sizes | fields)).eval()


def make_processor(kind: str, size=SIZE, **others) -> IGPTImageProcessor:
    parts = {"palette": {"palette": PALETTE}, "rgb": {}, "vqvae": {"vqvae": make_vqvae()}}
    return IGPTImageProcessor(size=size, token_kind=kind, **parts[kind] | others)


def random_images(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


KINDS = {
    # kind: values, tokens a cell, grid of an image of 4 x 6
    "palette": (11, 1, (4, 6)),
    "rgb": (256, 3, (4, 6)),
    "vqvae": (13, 1, (2, 3)),
}


@pytest.fixture(params=list(KINDS))
def processor(request):
    return make_processor(request.param)


def test_every_kind_says_what_a_model_must_know(processor):
    values, channels, grid = KINDS[processor.token_kind]
    assert (processor.num_values, processor.num_channels, processor.grid) == (values, channels, grid)
    assert processor.num_tokens == grid[0] * grid[1] * channels
    tokens = processor(list(map(Image.fromarray, random_images(5, 4, 6))), return_tensors="pt").input_ids
    assert tokens.dtype == torch.int64 and tokens.shape == (5, processor.num_tokens)
    assert tokens.min() >= 0 and tokens.max() < values and len(tokens.unique()) > 2
    images = processor.decode(tokens)
    assert [image.size for image in images] == [(6, 4)] * 5
    np.testing.assert_array_equal(processor.decode_pixels(tokens[1]), np.asarray(images[1])[None])


def test_what_a_kind_says_of_itself_is_so(processor):
    kind, pixels = TOKEN_KINDS[processor.token_kind], random_images(5, 4, 6)
    tokens = processor.quantize(pixels)
    assert np.array_equal(processor.decode_pixels(tokens), pixels) == kind.is_exact

    def mirrored(rows):
        return np.flip(np.reshape(rows, (5, *processor.grid, processor.num_channels)), axis=2).reshape(5, -1)

    assert np.array_equal(processor.quantize(pixels[:, :, ::-1]), mirrored(tokens)) == kind.is_movable


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), count=st.integers(1, 3), seed=st.integers(0, 99))
def test_rgb_is_lossless(height, width, count, seed):
    images = random_images(count, height, width, seed)
    processor = make_processor("rgb", {"height": height, "width": width})
    tokens = processor(list(map(Image.fromarray, images))).input_ids
    np.testing.assert_array_equal(tokens.reshape(images.shape), images)
    np.testing.assert_array_equal(processor.decode_pixels(tokens), images)


def test_codes_are_those_of_the_vqvae():
    processor = make_processor("vqvae")
    images = random_images(3, 4, 6)
    codes = processor.vqvae.encode(images)
    np.testing.assert_array_equal(processor(images).input_ids, codes.reshape(3, -1))
    np.testing.assert_array_equal(processor.decode_pixels(codes.reshape(3, -1)), processor.vqvae.decode(codes))


def test_masks_fall_on_the_cell_that_a_pixel_is_in():
    mask = np.zeros((4, 6), dtype=bool)
    mask[3, 2] = True
    assert np.argwhere(make_processor("vqvae").fit_mask(mask)).tolist() == [[1, 1]]
    assert np.argwhere(make_processor("rgb").fit_mask(mask)).tolist() == [[3, 2]]
    hidden = np.asarray(hide_region(Image.new("RGB", (6, 4)), np.array([[0, 0, 0], [0, 1, 0]], dtype=bool)))
    assert np.argwhere((hidden == MISSING).all(axis=2)).tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]


# Saving


@pytest.mark.parametrize("load", [IGPTImageProcessor.from_pretrained, AutoImageProcessor.from_pretrained])
def test_save_and_load(processor, load, tmp_path):
    processor.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert type(again) is IGPTImageProcessor and again.to_dict() == processor.to_dict()
    assert again.token_hash == processor.token_hash and repr(again) == repr(processor)
    images = random_images(2, 9, 7)
    np.testing.assert_array_equal(again(images).input_ids, processor(images).input_ids)
    small = load(tmp_path, size=2)
    assert (small.token_kind, small.token_hash) == (processor.token_kind, processor.token_hash)
    assert small.with_size(SIZE).to_dict() == processor.to_dict()


def test_saving_over_another_vqvae_leaves_one(tmp_path):
    make_processor("vqvae").save_pretrained(tmp_path)
    other = make_processor("vqvae", vqvae=make_vqvae(1))
    other.save_pretrained(tmp_path)
    assert IGPTImageProcessor.from_pretrained(tmp_path).token_hash == other.token_hash


def test_another_kind_over_codes_leaves_no_vqvae_and_none_of_somebody_else_goes(tmp_path):
    make_processor("vqvae").save_pretrained(tmp_path)
    for kind in ("rgb", "palette"):
        make_processor(kind).save_pretrained(tmp_path)
        assert not (tmp_path / "vqvae").exists()
        assert IGPTImageProcessor.from_pretrained(tmp_path).token_kind == kind
    make_vqvae().save_pretrained(tmp_path / "vqvae")
    make_processor("rgb").save_pretrained(tmp_path)
    assert ImageGPTVQVAEModel.from_pretrained(tmp_path / "vqvae").codes_hash == make_vqvae().codes_hash


@pytest.mark.parametrize("before", ["nothing", "its vqvae", "palette", "vqvae"])
def test_pushed_while_it_is_saved_it_is_whole(tmp_path, monkeypatch, before):
    uploaded = {}

    def create_commit(self, *, operations, **_):
        for operation in operations:
            uploaded[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()

    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id))
    folder, pushed = tmp_path / "saved", tmp_path / "pushed"
    processor = make_processor("vqvae", vqvae=make_vqvae(1))
    if before == "its vqvae":
        processor.vqvae.save_pretrained(folder / "vqvae")
    elif before != "nothing":
        make_processor(before).save_pretrained(folder)
    processor.save_pretrained(str(folder), push_to_hub=True, repo_id="someone/name")
    for name, content in uploaded.items():
        (pushed / name).parent.mkdir(parents=True, exist_ok=True)
        (pushed / name).write_bytes(content)
    for place in (folder, pushed):
        assert IGPTImageProcessor.from_pretrained(place).token_hash == processor.token_hash
        assert (place / "vqvae/modeling_igpt_vqvae.py").is_file() and (place / "image_processing_igpt.py").is_file()
    assert not list(folder.rglob(".partial*"))


def test_a_vqvae_that_is_not_the_processors_is_refused(tmp_path):
    make_processor("vqvae").save_pretrained(tmp_path)
    make_vqvae(1).save_pretrained(tmp_path / "vqvae")
    with pytest.raises(ValueError, match="VQ-VAE in the folder vqvae is not the one"):
        IGPTImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("missing", ["vqvae", "vqvae/config.json", "vqvae/model.safetensors"])
def test_a_vqvae_that_is_missing_is_named(tmp_path, missing):
    processor = make_processor("vqvae")
    processor.save_pretrained(tmp_path)
    randomize_(ImageGPTForCausalImageModeling(config_for(processor))).save_pretrained(tmp_path)
    assert load_checkpoint(str(tmp_path))[1].token_hash == processor.token_hash
    path = tmp_path / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(OSError) as raised:
        IGPTImageProcessor.from_pretrained(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}/vqvae, the VQ-VAE that makes the image processor's tokens, can't")
    with pytest.raises(ValueError) as refused:
        load_checkpoint(str(tmp_path))
    assert str(raised.value) in str(refused.value) and "palette" not in str(refused.value)


def test_one_made_before_there_were_kinds_is_of_a_palette(tmp_path):
    processor = make_processor("palette")
    processor.save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(
        json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "token_kind"})
    )
    assert IGPTImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"token_kind": "hsv"}, "`token_kind` must be one of palette, rgb, vqvae, got 'hsv'"),
        ({"token_kind": "rgb", "palette": PALETTE}, "`palette` is for the kind 'palette' of tokens"),
        ({"token_kind": "rgb", "vqvae": make_vqvae()}, "`vqvae` is for the kind 'vqvae' of tokens"),
        ({"token_kind": "vqvae"}, "needs `vqvae`, an `ImageGPTVQVAEModel` .* got NoneType"),
        ({"token_kind": "vqvae", "vqvae": "folder"}, "needs `vqvae`, an `ImageGPTVQVAEModel` .* got str"),
        ({"token_kind": "vqvae", "vqvae": make_vqvae(), "size": 5}, "must be multiples of 2 pixels, .* got 5 x 5"),
    ],
)
def test_bad_processors(arguments, message):
    with pytest.raises(ValueError, match=message):
        IGPTImageProcessor(**arguments)


def test_other_kinds_have_no_palette():
    processor = make_processor("rgb")
    assert processor.palette is None and processor.clusters is None and processor.vqvae is None
    for name in ("palette_hash", "num_colors"):
        with pytest.raises(ValueError, match="has no palette: its tokens are of the kind 'rgb'"):
            getattr(processor, name)
    with pytest.raises(ValueError, match=r"must be in 0\.\.\.255, got 256 at position \(0, 71\)"):
        processor.decode([[0] * 71 + [256]])


# What belongs together


def config_for(processor: IGPTImageProcessor, **fields) -> ImageGPTConfig:
    kinds = {
        "token_kind": processor.token_kind,
        "vocab_size": processor.num_values + 1,
        "num_channels": processor.num_channels,
        "image_size": list(processor.grid),
    }
    return tiny_config(**kinds | fields)


def test_a_checkpoint_says_its_kind_and_refuses_others(processor):
    check_processor(processor, config_for(processor))
    check_processor(processor, config_for(processor, token_kind=None))
    other = make_processor("vqvae" if processor.token_kind == "palette" else "palette", **same_layout(processor))
    with pytest.raises(
        ValueError, match=f"makes {other.token_kind} tokens .* model has {processor.token_kind} tokens"
    ):
        check_processor(other, config_for(processor))


def same_layout(processor: IGPTImageProcessor) -> dict:
    """What makes a palette's tokens look like these codes, and codes like these colours."""
    if processor.token_kind == "palette":
        return {"size": {"height": 8, "width": 12}, "vqvae": make_vqvae(codebook_size=11)}
    height, width = processor.grid
    palette = np.random.default_rng(0).uniform(0, 255, (processor.num_values, 3))
    return {"size": {"height": height, "width": width}, "palette": palette}


def test_tokens_say_their_kind_and_refuse_other_models_and_processors(processor):
    import datasets

    images = datasets.Dataset.from_dict({"image": list(map(Image.fromarray, random_images(4, 4, 6)))})
    tokens = tokenize(images, processor)
    info = tokens_info(tokens)
    assert (info["token_kind"], info["token_hash"]) == (processor.token_kind, processor.token_hash)
    assert check_tokens(tokens, processor) == check_tokens(tokens, config_for(processor)) == info
    np.testing.assert_array_equal(np.array(tokens["input_ids"]), processor(random_images(4, 4, 6)).input_ids)
    if processor.token_kind != "rgb":
        other = make_processor("vqvae" if processor.token_kind == "palette" else "palette", **same_layout(processor))
        for reference in (other, config_for(other)):
            with pytest.raises(ValueError, match=f"`token_kind` of the tokens is {processor.token_kind}"):
                check_tokens(tokens, reference)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_kind": "hsv"}, "`token_kind` must be one of palette, rgb, vqvae, got 'hsv'"),
        ({"token_kind": "rgb"}, "`num_channels` must be 3 and `vocab_size` 257, got 1 and 11"),
        ({"token_kind": "rgb", "num_channels": 3, "vocab_size": 513}, "`vocab_size` 257, got 3 and 513"),
        ({"token_kind": "vqvae", "num_channels": 3}, "`num_channels` must be 1"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


# Masks of whole cells


@pytest.mark.parametrize("rate", [0.15, UNIFORM])
def test_the_tokens_of_a_pixel_are_hidden_together(rate):
    masks = Masking(36, rate, num_channels=3)(0, np.arange(200))
    cells = masks.reshape(200, 12, 3)
    assert (cells.all(axis=2) == cells.any(axis=2)).all()
    np.testing.assert_array_equal(cells[:, :, 0], Masking(12, rate)(0, np.arange(200)))
    with pytest.raises(ValueError, match="35 tokens are no whole cells of 3"):
        Masking(35, num_channels=3)


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_the_tokens_of_a_pixel_are_drawn_together(order):
    model = tiny_masked(num_channels=3)
    tokens = random_tokens(model.config)
    hidden = torch.ones_like(tokens, dtype=torch.bool)
    # One of a pixel's tokens is given.
    hidden[:, 4] = False
    left = [hidden for _, hidden in iterative_steps(model, tokens, hidden, order=order)]
    assert len(left) == 1 + 12
    for before, after in zip(left, left[1:], strict=False):
        drawn = (before & ~after).view(len(tokens), 12, 3)
        assert (drawn.any(dim=2).sum(dim=1) == 1).all()
        whole = drawn.all(dim=2) | (drawn.sum(dim=2) == 2)
        assert (whole == drawn.any(dim=2)).all()
    with pytest.raises(ValueError, match="whole cells of 3 tokens, got 4"):
        list(iterative_steps(model, tokens[:, :4], hidden[:, :4]))


def test_a_grid_of_96_x_96_trains_and_continues_an_image(processor):
    cell, channels = processor.cell_size, processor.num_channels
    processor = processor.with_size(96 * cell)
    tokens = torch.from_numpy(processor(list(map(Image.fromarray, random_images(1, 40, 50)))).input_ids)
    assert tokens.shape == (1, 96 * 96 * channels)
    model = randomize_(ImageGPTForCausalImageModeling(config_for(processor, num_hidden_layers=1)))
    loss = model(labels=tokens).loss
    loss.backward()
    assert loss.isfinite() and model.transformer.wpe.weight.grad[-1].abs().sum() > 0
    given = torch.cat([tokens.new_full((1, 1), model.config.start_token_id), tokens[:, :-3]], dim=1)
    drawn = model.eval().generate(given)
    assert torch.equal(drawn[:, 1:-3], tokens[:, :-3]) and drawn.shape == (1, tokens.shape[1] + 1)
