"""Images to tokens and back, alone and in batches, saved and loaded."""

import copy
import json
import pickle
import tracemalloc

import dill
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil

from hf_igpt import IGPTImageProcessor
from hf_igpt.image_processing_igpt import to_rgb


PALETTE = np.random.default_rng(0).uniform(0, 255, (11, 3))


def make_processor(height=4, width=6, palette=PALETTE, **options):
    return IGPTImageProcessor(size={"height": height, "width": width}, palette=palette, **options)


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def brute_force(pixels, palette=PALETTE):
    distances = ((pixels[..., None, :].astype(np.float64) - palette) ** 2).sum(-1)
    return distances.argmin(-1).reshape(len(pixels), -1)


def tokens_of(processor, images, **options):
    return processor(images, return_tensors="np", **options)["input_ids"]


def test_tokens_are_nearest_colors_in_raster_order():
    pixels = random_pixels(3, 4, 6)
    batch = make_processor()([Image.fromarray(image) for image in pixels], return_tensors="pt")
    assert batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"].shape == (3, 24)
    np.testing.assert_array_equal(batch["input_ids"].numpy(), brute_force(pixels))


def test_every_kind_of_input_gives_the_same_tokens(tmp_path):
    pixels = random_pixels(4, 6)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    channels_first = np.moveaxis(pixels, -1, 0)
    processor = make_processor()
    expected = brute_force(pixels[None])
    for image in (
        Image.fromarray(pixels),
        Image.open(path),
        path,
        str(path),
        path.read_bytes(),
        pixels,
        channels_first,
        torch.from_numpy(pixels),
        torch.from_numpy(channels_first / np.float32(255)),
    ):
        np.testing.assert_array_equal(tokens_of(processor, image), expected)
        np.testing.assert_array_equal(tokens_of(processor, (image, image)), expected.repeat(2, axis=0))
    for batch in (pixels[None], channels_first[None], torch.from_numpy(channels_first)[None]):
        np.testing.assert_array_equal(tokens_of(processor, batch), expected)


@pytest.mark.parametrize("options", [{}, {"do_center_crop": True}, {"do_center_crop": True, "crop_size": 7}])
@pytest.mark.parametrize("resample", list(Image.Resampling))
def test_a_mask_hides_every_token_that_a_pixel_has_a_part_in(resample, options):
    processor = make_processor(resample=resample, **options)
    found, changed = np.zeros((2, 9, 13, 4, 6), dtype=bool)
    grey = np.full((9, 13, 3), 128, dtype=np.uint8)
    plain = processor.pixels(Image.fromarray(grey))[0]
    for row, column in np.ndindex(9, 13):
        mask = np.zeros((9, 13), dtype=bool)
        mask[row, column] = True
        found[row, column] = processor.fit_mask(mask)
        for level in (0, 255):
            other = Image.fromarray(np.where(mask[..., None], level, grey).astype(np.uint8))
            changed[row, column] |= (processor.pixels(other)[0] != plain).any(axis=-1)
    assert changed.any() and not (changed & ~found).any()
    # With wider filters rounding takes small parts away.
    assert (found == changed).all() or resample not in (Image.Resampling.NEAREST, Image.Resampling.BOX)
    everything = processor.fit_mask(np.ones((9, 13), dtype=bool))
    assert everything.dtype == bool and everything.shape == (4, 6) and everything.all()


@settings(max_examples=30, deadline=None)
@given(data=st.data(), resample=st.sampled_from([0, 2, 3]), crop=st.sampled_from([None, 3, {"height": 5, "width": 2}]))
def test_alone_as_in_a_batch(data, resample, crop):
    options = {} if crop is None else {"do_center_crop": True, "crop_size": crop}
    processor = make_processor(resample=resample, **options)
    sizes = data.draw(st.lists(st.tuples(st.integers(2, 9), st.integers(2, 9)), min_size=1, max_size=5))
    modes = ["RGB", "L", "RGBA", "P", "CMYK", "I;16", "1", "array"]
    images = []
    for number, (height, width) in enumerate(sizes):
        pixels = random_pixels(height, width, seed=number)
        mode = data.draw(st.sampled_from(modes))
        if mode == "array":
            images.append(pixels[..., :1].repeat(3, axis=-1) / 255)
            if 3 in (height, width) or 4 in (height, width):
                images[-1] = Image.fromarray(pixels)
        elif mode == "I;16":
            images.append(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257))
        else:
            images.append(Image.fromarray(pixels).convert(mode))
    together = tokens_of(processor, images)
    np.testing.assert_array_equal(together, np.concatenate([tokens_of(processor, image) for image in images]))
    np.testing.assert_array_equal(together[::-1], tokens_of(processor, images[::-1]))


def test_large_batches_are_read_in_blocks():
    pixels = random_pixels(150, 4, 6)
    np.testing.assert_array_equal(make_processor().pixels([Image.fromarray(image) for image in pixels]), pixels)


def test_trap_every_distance_of_a_batch_is_in_memory_at_once():
    generator = np.random.default_rng(0)
    images = [Image.fromarray(pixels) for pixels in generator.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)]
    processor = IGPTImageProcessor(palette=generator.uniform(0, 255, (512, 3)))
    tracemalloc.start()
    try:
        processor(images)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # transformers' ImageGPT processor takes 200 x 1024 x 512 distances of 8 bytes here: 840 MB.
    assert peak < 50e6


def test_array_batches_of_another_size_are_resized_like_single_images():
    """A batch whose shape alone doesn't tell the channels, too, once it is said what they are."""
    for batch in (random_pixels(2, 9, 7), random_pixels(2, 3, 7)):
        processor = make_processor()
        alone = [processor.pixels(Image.fromarray(image))[0] for image in batch]
        np.testing.assert_array_equal(processor.pixels(batch, "channels_last"), alone)
        np.testing.assert_array_equal(processor.pixels(np.moveaxis(batch, -1, 1), "channels_first"), alone)


@pytest.mark.parametrize("resample", list(Image.Resampling))
def test_resize_is_pillows(resample):
    image = Image.fromarray(random_pixels(13, 17))
    expected = image.resize((6, 4), resample)
    np.testing.assert_array_equal(make_processor(resample=resample).pixels(image)[0], expected)


def test_same_resize_as_transformers_image_gpt():
    image = Image.fromarray(random_pixels(13, 17))
    native = ImageGPTImageProcessorPil(size={"height": 4, "width": 6}, do_color_quantize=False)
    values = native(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(
        np.moveaxis(values, 0, -1) * 127.5 + 127.5, make_processor().pixels(image)[0], atol=1e-3
    )


def test_center_crop_keeps_the_aspect_ratio():
    """A wide image: its middle square survives, its sides don't."""
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    pixels[:, :8] = (255, 0, 0)
    pixels[:, 8:16] = (0, 255, 0)
    pixels[:, 16:] = (0, 0, 255)
    cropped = IGPTImageProcessor(size=4, do_center_crop=True, resample=0).pixels(pixels)
    np.testing.assert_array_equal(cropped, np.broadcast_to([0, 255, 0], (1, 4, 4, 3)))
    squeezed = IGPTImageProcessor(size=4, resample=0).pixels(pixels)
    assert len(np.unique(squeezed.reshape(-1, 3), axis=0)) == 3


def test_the_papers_evaluation_is_a_composition():
    """Shorter side 224, centre crop 224 x 224, then the model's resolution."""
    image = Image.fromarray(random_pixels(40, 30)).resize((300, 400), Image.Resampling.BICUBIC)
    processor = IGPTImageProcessor(size=32, do_center_crop=True, crop_size=224)
    by_hand = image.resize((224, 298), Image.Resampling.BILINEAR).crop((0, 37, 224, 261)).resize((32, 32), 2)
    np.testing.assert_array_equal(processor.pixels(image)[0], by_hand)


def test_crop_without_resize_takes_the_middle():
    pixels = random_pixels(8, 10)
    processor = make_processor(do_resize=False, do_center_crop=True)
    np.testing.assert_array_equal(processor.pixels(pixels)[0], pixels[2:6, 2:8])
    with pytest.raises(ValueError, match="5 x 8 is smaller than the centre crop 6 x 4"):
        processor.pixels(Image.fromarray(pixels[:, :5]))


def test_without_resize_the_size_must_fit():
    with pytest.raises(ValueError, match=r"images\[1\]: with `do_resize=False`.*6 wide and 4 high, got 4 x 6"):
        make_processor(do_resize=False)([Image.new("RGB", (6, 4)), Image.new("RGB", (4, 6))])


def test_a_long_narrow_image_is_refused_before_it_grows():
    with pytest.raises(ValueError, match="too long and narrow"):
        IGPTImageProcessor(size=32, do_center_crop=True, crop_size=224).pixels(Image.new("RGB", (3000, 1)))


@pytest.mark.parametrize(
    ("orientation", "turn_back"), [(6, Image.Transpose.ROTATE_90), (3, Image.Transpose.ROTATE_180)]
)
def test_exif_orientation_is_applied_in_batches(orientation, turn_back, tmp_path):
    """Half a turn keeps the size, which is that of the grid here: nothing but the tag tells."""
    upright = Image.fromarray(random_pixels(4, 6))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    upright.transpose(turn_back).save(path, exif=exif)
    pixels = make_processor().pixels([path, Image.open(path), Image.open(path).copy(), upright])
    np.testing.assert_array_equal(pixels, np.asarray(upright)[None].repeat(4, axis=0))


def test_unread_files_are_read_before_their_orientation_is_looked_up(tmp_path):
    """PNG allows the tag after the pixels: it is known only once they are read."""
    upright = Image.fromarray(random_pixels(4, 6))
    exif = Image.Exif()
    exif[0x0112] = 3
    path = tmp_path / "late.png"
    upright.transpose(Image.Transpose.ROTATE_180).save(path, exif=exif)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    unread = Image.open(path)
    assert not unread.info
    np.testing.assert_array_equal(make_processor().pixels([unread])[0], upright)


@pytest.mark.parametrize("as_array", [False, True])
def test_an_image_of_the_grids_size_is_cropped_too(as_array):
    pixels = random_pixels(4, 6)
    image = Image.fromarray(pixels)
    processor = make_processor(do_center_crop=True, crop_size={"height": 2, "width": 2}, resample=0)
    by_hand = image.resize((3, 2), 0).crop((0, 0, 2, 2)).resize((6, 4), 0)
    np.testing.assert_array_equal(processor.pixels(pixels[None] if as_array else [image])[0], by_hand)


def test_the_callers_images_are_left_alone():
    image = Image.fromarray(random_pixels(13, 17)).convert("P")
    before = image.tobytes(), image.mode, image.size
    array = random_pixels(1, 4, 6)
    make_processor()([image])
    pixels = make_processor().pixels(array)
    assert (image.tobytes(), image.mode, image.size) == before
    np.testing.assert_array_equal(array, random_pixels(1, 4, 6))
    assert pixels.flags.c_contiguous


@given(npst.arrays(np.int64, (2, 24), elements=st.integers(0, 10)))
@settings(max_examples=20, deadline=None)
def test_decode_gives_the_rounded_colors(tokens):
    processor = make_processor()
    for given_tokens in (tokens, tokens.tolist(), torch.from_numpy(tokens), tokens.astype(np.uint16)):
        images = processor.decode(given_tokens)
        assert [(image.mode, image.size) for image in images] == [("RGB", (6, 4))] * 2
        np.testing.assert_array_equal(np.stack(images), np.rint(PALETTE)[tokens].reshape(2, 4, 6, 3))
    np.testing.assert_array_equal(processor.decode(tokens[0])[0], images[0])


def test_decoded_whole_colors_give_the_same_tokens():
    processor = make_processor(palette=np.rint(PALETTE))
    tokens = np.random.default_rng(0).integers(0, 11, (5, 24))
    np.testing.assert_array_equal(tokens_of(processor, processor.decode(tokens)), tokens)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.full((2, 24), 11), r"in 0...10, got 11 at position \(0, 0\).*start token"),
        ([0] * 23 + [-1], r"in 0...10, got -1 at position \(23,\)"),
        (np.zeros((2, 23), dtype=int), r"\(batch, 24\) or \(24,\) for the grid 4 x 6, got \(2, 23\)"),
        (np.zeros((1, 1, 24), dtype=int), r"got \(1, 1, 24\)"),
        (np.zeros((2, 24)), "integers, got values of type float64"),
        ([[0] * 24, [0] * 23], "rows of equal length"),
        (np.array([None] * 24), "type object"),
        (3, r"got \(\)"),
    ],
)
def test_decode_refuses(tokens, message):
    with pytest.raises(ValueError, match=f"`tokens` must be.*{message}|`tokens` must have.*{message}"):
        make_processor().decode(tokens)


def test_an_unsuitable_image_is_named():
    good = Image.new("RGB", (6, 4))
    for bad, message in (
        (np.full((4, 6, 3), np.nan), r"shape \(4, 6, 3\), type float64, with NaN"),
        (np.zeros((5, 6, 2), dtype=np.uint8), "got 2"),
        (np.zeros((0, 6, 3), dtype=np.uint8), r"\(0, 6, 3\)"),
        (np.full((4, 6, 3), 256), "range 256...256"),
        ("http://127.0.0.1:1/x.png", "address"),
        (b"", "empty"),
        (np.zeros((2, 4, 6, 3), dtype=np.uint8), "one image"),
        ([good], "an image must be"),
    ):
        with pytest.raises(ValueError, match=rf"^images\[1\]: .*{message}"):
            make_processor()([good, bad])
        with pytest.raises(ValueError, match=rf"^(?!images).*{message}"):
            make_processor()([bad])


@pytest.mark.parametrize("images", [[], (), np.zeros((0, 4, 6, 3), dtype=np.uint8)])
def test_no_images(images):
    with pytest.raises(ValueError, match="empty|must have pixels"):
        make_processor()(images)


def test_return_types():
    image = Image.fromarray(random_pixels(4, 6))
    assert isinstance(make_processor()(image, return_tensors="pt")["input_ids"], torch.Tensor)
    for kind in ("np", None):
        tokens = make_processor()(image, return_tensors=kind)["input_ids"]
        assert tokens.dtype == np.int64
    with pytest.raises(ValueError, match='`return_tensors` must be "pt", "np" or None'):
        make_processor()(image, return_tensors="tf")


def test_the_two_halves_of_a_call():
    processor = make_processor()
    pixels = processor.pixels(random_pixels(3, 9, 9))
    tokens = processor.quantize(pixels)
    assert tokens.dtype == np.uint16
    np.testing.assert_array_equal(tokens, brute_force(pixels))
    with pytest.raises(ValueError, match=r"shape \(batch, 4, 6, 3\), got \(3, 6, 4, 3\)"):
        processor.quantize(np.zeros((3, 6, 4, 3), dtype=np.uint8))


def test_without_palette():
    processor = IGPTImageProcessor(size=4)
    assert processor.palette is None
    assert processor.clusters is None
    assert "palette=None" in repr(processor)
    assert processor.pixels(Image.new("RGB", (9, 9))).shape == (1, 4, 4, 3)
    for use in (
        lambda: processor(Image.new("RGB", (4, 4))),
        lambda: processor.decode([0] * 16),
        lambda: processor.palette_hash,
        lambda: processor.num_colors,
    ):
        with pytest.raises(ValueError, match="no `palette` yet: fit one"):
            use()


def test_properties():
    processor = make_processor()
    assert processor.grid == (4, 6)
    assert processor.num_colors == 11
    np.testing.assert_array_equal(processor.palette, PALETTE)
    np.testing.assert_allclose(processor.clusters, PALETTE / 127.5 - 1, rtol=0, atol=1e-15)
    assert len(repr(processor)) < 300
    assert processor.palette_hash in repr(processor)


def test_the_palette_cannot_drift_from_its_lookup():
    source = PALETTE.copy()
    processor = make_processor(palette=source)
    source[:] = 0
    np.testing.assert_array_equal(processor.palette, PALETTE)
    for holder in (processor, pickle.loads(pickle.dumps(processor)), copy.deepcopy(processor)):
        with pytest.raises(ValueError, match="read-only"):
            holder.palette[0] = 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "`size`.*from 1 to 4096, got 0"),
        ({"size": 4097}, "`size`"),
        ({"size": 10**30}, "`size`"),
        ({"size": True}, "`size`"),
        ({"size": 4.0}, "`size`"),
        ({"size": "32"}, "`size`"),
        ({"size": [4]}, "`size`"),
        ({"size": {"shortest_edge": 4}}, '`size` must have "height" and "width"'),
        ({"size": {"height": 4, "width": 4, "depth": 4}}, '`size` must have "height" and "width"'),
        ({"size": {"height": 4, "width": None}}, "`size`"),
        ({"crop_size": 4}, "`crop_size`=4 needs `do_center_crop=True`"),
        ({"do_center_crop": True, "crop_size": -1}, "`crop_size`"),
        ({"do_resize": "yes"}, "`do_resize` must be true or false"),
        ({"do_center_crop": 1}, "`do_center_crop` must be true or false"),
        ({"resample": 99}, r"`resample`.*2 \(bilinear\)"),
        ({"resample": "bilinear"}, "`resample`"),
        ({"palette": [[0, 0, 0], [0, 0, float("nan")]]}, "`palette`"),
        ({"palette": PALETTE, "clusters": PALETTE / 255}, "`palette` and `clusters`"),
        ({"sise": 4}, "unknown keyword 'sise'"),
        ({"image_mean": [0.4, 0.5, 0.5]}, "`image_mean` can only be"),
        ({"do_normalize": False}, "`do_normalize` can only be True"),
        ({"do_color_quantize": False}, "`do_color_quantize` can only be True"),
        ({"do_pad": True}, "`do_pad` can only be False"),
        ({"rescale_factor": 1.0}, "`rescale_factor`"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        IGPTImageProcessor(**options)


def test_a_call_takes_no_other_keyword():
    with pytest.raises(ValueError, match="unknown keyword 'do_resize'"):
        make_processor()(Image.new("RGB", (6, 4)), do_resize=False)


SETTINGS = [
    {},
    {"do_resize": False},
    {"do_center_crop": True},
    {"do_center_crop": True, "crop_size": {"height": 9, "width": 7}, "resample": 3},
    {"palette": None},
]


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("backend", [None, "pil", "torchvision"])
def test_save_and_load(options, backend, tmp_path):
    processor = make_processor(**options)
    processor.save_pretrained(tmp_path)
    for loaded in (
        IGPTImageProcessor.from_pretrained(tmp_path),
        AutoImageProcessor.from_pretrained(tmp_path, backend=backend),
    ):
        assert type(loaded) is IGPTImageProcessor
        assert loaded.to_dict() == processor.to_dict()
        if processor.palette is not None:
            assert loaded.palette.tobytes() == processor.palette.tobytes()
        assert pickle.dumps(loaded) == pickle.dumps(processor)


def test_what_is_saved_is_plain(tmp_path):
    make_processor(resample=Image.Resampling.BICUBIC).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert config == {
        "size": {"height": 4, "width": 6},
        "palette": PALETTE.tolist(),
        "do_resize": True,
        "do_center_crop": False,
        "crop_size": None,
        "resample": 3,
        "image_processor_type": "IGPTImageProcessor",
        "auto_map": {"AutoImageProcessor": "image_processing_igpt.IGPTImageProcessor"},
        "token_kind": "palette",
    }


def test_from_pretrained_overrides_and_refuses(tmp_path):
    make_processor().save_pretrained(tmp_path)
    load = IGPTImageProcessor.from_pretrained
    assert load(tmp_path, size=8).grid == (8, 8)
    assert load(tmp_path, palette=PALETTE[:3]).num_colors == 3
    assert load(tmp_path, clusters=[[0, 0, 0], [1, 1, 1]]).palette.tolist() == [[127.5] * 3, [255.0] * 3]
    with pytest.raises(ValueError, match="unknown keyword 'sise'"):
        load(tmp_path, sise=8)
    processor, unused = load(tmp_path, sise=8, return_unused_kwargs=True)
    assert unused == {"sise": 8}
    assert processor.grid == (4, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"palette": [[0, 0, 300], [0, 0, 0]]}, "`palette`.*row 0, channel 2"),
        ({"palette": "palette.npy"}, "`palette`"),
        ({"palette": [["1", "2", "3"], ["1", "2", "3"]]}, "`palette`"),
        ({"palette": [[0, 0, 0]]}, "`palette`"),
        ({"size": {"height": -4, "width": 4}}, "`size`"),
        ({"size": {"height": 10**9, "width": 10**9}}, "`size`"),
        ({"do_resize": "false"}, "`do_resize`"),
        ({"pallete": []}, "unknown keyword 'pallete'"),
    ],
)
def test_an_edited_config_names_the_field(change, message, tmp_path):
    make_processor().save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        IGPTImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["[1, 2]", "3", '"text"', "null"])
def test_a_config_that_is_no_object(text, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises((ValueError, OSError)):
        IGPTImageProcessor.from_pretrained(tmp_path)


def native_clusters():
    return np.random.default_rng(3).uniform(-1, 1, (16, 3)).astype(np.float32).astype(np.float64)


def assert_same_tokens(ours, native, images):
    """Equal but where two colours are equally far within float error: native expands the square in [-1, 1]."""
    mine = tokens_of(ours, images)
    theirs = np.stack(native(images)["input_ids"])
    pixels = ours.pixels(images).reshape(-1, 3).astype(np.float64)
    gaps = ((pixels - ours.palette[mine.ravel()]) ** 2).sum(1) - ((pixels - ours.palette[theirs.ravel()]) ** 2).sum(1)
    assert len(np.unique(mine)) > 8
    assert np.abs(gaps).max() < 1e-6


@pytest.mark.parametrize("legacy", [False, True])
def test_a_native_checkpoints_processor(legacy, tmp_path):
    native = ImageGPTImageProcessorPil(clusters=native_clusters(), size={"height": 6, "width": 6})
    native.save_pretrained(tmp_path)
    if legacy:  # as the published checkpoints have it
        config = {
            "clusters": native_clusters().tolist(),
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "ImageGPTFeatureExtractor",
            "resample": 2,
            "size": 6,
        }
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    ours = IGPTImageProcessor.from_pretrained(tmp_path)
    assert ours.grid == (6, 6)
    np.testing.assert_array_equal(ours.palette, 127.5 * (native_clusters() + 1))
    np.testing.assert_allclose(ours.clusters, native_clusters(), rtol=0, atol=1e-15)
    assert_same_tokens(ours, native, [Image.fromarray(random_pixels(9, 8, seed=i)) for i in range(20)])
    ours.save_pretrained(tmp_path / "ours")
    assert IGPTImageProcessor.from_pretrained(tmp_path / "ours").to_dict() == ours.to_dict()


@pytest.mark.parametrize(
    "change", [{"do_normalize": False}, {"do_rescale": False}, {"image_std": [1, 1, 1]}, {"do_color_quantize": False}]
)
def test_a_native_config_we_cannot_honour_is_refused(change, tmp_path):
    ImageGPTImageProcessorPil(clusters=native_clusters(), size={"height": 6, "width": 6}, **change).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match=f"`{next(iter(change))}` can only be"):
        IGPTImageProcessor.from_pretrained(tmp_path)


def test_a_native_processor_keeps_its_own_class(tmp_path):
    ImageGPTImageProcessorPil(clusters=native_clusters()).save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is ImageGPTImageProcessorPil


def test_pickles_are_small_and_the_same_before_and_after_use():
    """What `datasets` fingerprints and DataLoader workers are sent."""
    processor = make_processor()
    before = pickle.dumps(processor), dill.dumps(processor)
    tokens = tokens_of(processor, random_pixels(1, 4, 6))
    assert (pickle.dumps(processor), dill.dumps(processor)) == before
    assert len(before[0]) < 5000
    for twin in (pickle.loads(before[0]), copy.deepcopy(processor)):
        np.testing.assert_array_equal(tokens_of(twin, random_pixels(1, 4, 6)), tokens)
    assert pickle.dumps(make_processor(palette=PALETTE.tolist())) == before[0]


def test_to_rgb_is_what_the_processor_does():
    image = Image.fromarray(random_pixels(4, 6)).convert("RGBA")
    np.testing.assert_array_equal(make_processor().pixels(image)[0], to_rgb(image))
