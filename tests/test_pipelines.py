"""Pipelines: completions, features aligned as in pretraining, and transformers' own image classification."""

import builtins
import contextlib
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from native_models import native_model
from PIL import Image
from tiny_models import randomize_, tiny_causal, tiny_config, tiny_masked
from torch.utils.data import Dataset, IterableDataset
from transformers import ImageFeatureExtractionPipeline, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils.logging import warning_once

import hf_igpt
from hf_igpt import (
    IGPTImageProcessor,
    ImageCompletionPipeline,
    ImageGPTConfig,
    ImageGPTFeatureExtractionPipeline,
    ImageGPTForImageClassification,
)
from hf_igpt.configuration_igpt import REGISTERED_PIPELINES
from hf_igpt.generation import complete, inpaint
from hf_igpt.pipeline_igpt import CUSTOM_PIPELINES


GRID = (3, 4)
CLASSES = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
HEADS = ("causal", "masked", "backbone", "classifier", "masked classifier")


@pytest.fixture(scope="module")
def processor():
    palette = np.random.default_rng(0).integers(0, 256, (10, 3))
    return IGPTImageProcessor(size={"height": 3, "width": 4}, palette=palette)


@pytest.fixture(scope="module")
def models():
    classifiers = [
        ImageGPTForImageClassification(tiny_config(**CLASSES, **more)) for more in ({}, {"is_causal": False})
    ]
    causal = tiny_causal(torch.float32)
    return {
        "causal": causal,
        "masked": tiny_masked(torch.float32),
        "backbone": causal.transformer,
        "classifier": randomize_(classifiers[0].eval(), 3),
        "masked classifier": randomize_(classifiers[1].eval(), 4),
    }


@pytest.fixture(scope="module")
def folders(models, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for name, model in models.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def causal(models, processor):
    return pipeline("image-completion", model=models["causal"], image_processor=processor)


@pytest.fixture(scope="module")
def masked(models, processor):
    return pipeline("image-completion", model=models["masked"], image_processor=processor)


@pytest.fixture(params=["causal", "masked"])
def either(request, causal, masked):
    return {"causal": causal, "masked": masked}[request.param]


@pytest.fixture
def no_question(monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked whether to run the checkpoint's code"))


def some_images(number: int, height: int = 3, width: int = 4, seed: int = 0) -> list[Image.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (number, height, width, 3), dtype=np.uint8)
    return list(map(Image.fromarray, pixels))


def arrays(drawn) -> np.ndarray:
    """Nested lists of images as one array."""
    return np.asarray(drawn) if isinstance(drawn, Image.Image) else np.stack([arrays(item) for item in drawn])


@contextlib.contextmanager
def captured_warnings(caplog):
    warning_once.cache_clear()
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        yield
    finally:
        library.removeHandler(caplog.handler)


# Registration


def test_both_tasks_are_registered_with_the_heads_that_checkpoints_name():
    for task in REGISTERED_PIPELINES:
        entry = PIPELINE_REGISTRY.check_task(task)[1]
        assert CUSTOM_PIPELINES[task]["impl"] == f"pipeline_igpt.{entry['impl'].__name__}"
        assert entry["impl"].__module__ == "hf_igpt.pipeline_igpt"
        assert CUSTOM_PIPELINES[task]["pt"] == [model.__name__ for model in entry["pt"]]
    assert set(CUSTOM_PIPELINES) - set(REGISTERED_PIPELINES) == {"image-feature-extraction"}


CENSUS = """
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY

before, videos = dict(PIPELINE_REGISTRY.supported_tasks), dict(VIDEO_PROCESSOR_MAPPING._extra_content)
import hf_igpt
after = PIPELINE_REGISTRY.supported_tasks
assert set(after) - set(before) == {"image-completion", "igpt-feature-extraction"}, set(after) ^ set(before)
assert all(after[task] is entry for task, entry in before.items())
added = set(VIDEO_PROCESSOR_MAPPING._extra_content) - set(videos)
assert added == {hf_igpt.ImageGPTConfig}, added
"""


def test_importing_the_package_adds_two_tasks_and_changes_none():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CENSUS], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_reloading_the_package_warns_of_nothing(caplog):
    import importlib

    with captured_warnings(caplog):
        importlib.reload(hf_igpt)
    assert not caplog.text
    assert PIPELINE_REGISTRY.check_task("image-completion")[1]["impl"] is ImageCompletionPipeline


def test_transformers_own_models_get_transformers_own_pipeline(processor):
    native = native_model("backbone", vocab_size=11, n_positions=12)
    extractor = pipeline("image-feature-extraction", model=native, image_processor=processor)
    assert type(extractor) is ImageFeatureExtractionPipeline
    (image,) = some_images(1)
    tokens = processor(image, return_tensors="pt").input_ids
    assert torch.equal(extractor(image, return_tensors=True), native(input_ids=tokens).last_hidden_state)


# Completion


@pytest.mark.parametrize("rows_kept", [0, 1, 2, None])
def test_what_is_kept_stays_and_the_rest_is_drawn(either, processor, rows_kept):
    images = some_images(4, 9, 8)
    drawn = either(images, rows_kept=rows_kept, num_images=3, seed=1)
    assert all(image.mode == "RGB" and image.size == (4, 3) for row in drawn for image in row)
    drawn = arrays(drawn)
    assert drawn.shape == (4, 3, 3, 4, 3)
    given = arrays(processor.decode(processor(images).input_ids))
    kept = 1 if rows_kept is None else rows_kept
    np.testing.assert_array_equal(drawn[:, :, :kept], np.broadcast_to(given[:, None, :kept], drawn[:, :, :kept].shape))
    assert (drawn[:, :, kept:] != given[:, None, kept:]).any(axis=(2, 3, 4)).all()
    assert len({image.tobytes() for image in drawn.reshape(12, -1)}) == 12


@pytest.mark.parametrize("options", [{}, {"temperature": 2, "top_k": 8, "top_p": 0.9}])
def test_they_are_those_of_the_function_with_the_same_seed(either, processor, options):
    images = some_images(3)
    tokens = processor(images).input_ids
    expected = complete(
        either.model,
        tokens,
        2,
        num_samples=2,
        seed=5,
        **{k: float(v) if k == "temperature" else v for k, v in options.items()},
    )
    drawn = arrays(either(images, rows_kept=2, num_images=2, seed=5, **options))
    np.testing.assert_array_equal(drawn, arrays([processor.decode(row) for row in expected]))


class Images(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        return self.images[number]


class Stream(IterableDataset):
    def __init__(self, images):
        self.images = images

    def __iter__(self):
        return iter(self.images)


def test_every_container_and_batch_size_gives_the_same_images(either):
    images = some_images(5, 6, 8)
    options = {"num_images": 2, "seed": 7}
    expected = arrays(either(images, **options))
    batch = np.stack([np.asarray(image) for image in images])
    for batch_size in (1, 2, 5, 8):
        for inputs in (images, tuple(images), batch, torch.from_numpy(batch)):
            np.testing.assert_array_equal(arrays(either(inputs, batch_size=batch_size, **options)), expected)
        streams = [
            (image for image in images),
            iter(images),
            Images(images),
            Stream(images),
            KeyDataset([{"image": image} for image in images], "image"),
        ]
        for stream in streams:
            drawn = either(stream, batch_size=batch_size, **options)
            assert not isinstance(drawn, list)
            np.testing.assert_array_equal(arrays(list(drawn)), expected)
    alone = arrays(either(images[0], **options))
    np.testing.assert_array_equal(alone, expected[0])
    fewer = arrays(either(images[:2], num_images=1, seed=7))
    np.testing.assert_array_equal(fewer, expected[:2, :1])
    assert either([], **options) == []


def test_worker_processes_change_nothing(causal):
    images = some_images(3)
    expected = arrays(causal(images, seed=7))
    np.testing.assert_array_equal(arrays(causal(images, seed=7, num_workers=1, batch_size=2)), expected)


def test_every_kind_of_image(either, tmp_path):
    (image,) = some_images(1, 6, 8)
    image.save(tmp_path / "image.png")
    expected = arrays(either(image, seed=3))
    for same in (
        str(tmp_path / "image.png"),
        tmp_path / "image.png",
        (tmp_path / "image.png").read_bytes(),
        np.asarray(image),
        torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()),
        {"image": image},
    ):
        np.testing.assert_array_equal(arrays(either(same, seed=3)), expected)


def test_arrays_whose_channels_could_be_on_either_side(either):
    (image,) = some_images(1)
    with pytest.raises(ValueError, match="image 0: the channels could be the first or the last.*`input_data_format="):
        either(np.asarray(image))
    drawn = either(np.asarray(image), seed=3, input_data_format="channels_last")
    np.testing.assert_array_equal(arrays(drawn), arrays(either(image, seed=3)))


def test_an_address_is_fetched(causal, monkeypatch):
    (image,) = some_images(1)
    asked = []

    def fetched(address, timeout=None):
        asked.append((address, timeout))
        return image

    monkeypatch.setattr("hf_igpt.pipeline_igpt.load_image", fetched)
    drawn = causal("https://example.org/image.png", seed=3, timeout=2.0)
    np.testing.assert_array_equal(arrays(drawn), arrays(causal(image, seed=3)))
    assert asked == [("https://example.org/image.png", 2.0)]


def test_seeds(either):
    images = some_images(2)
    first, again, other = (arrays(either(images, rows_kept=0, seed=seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(axis=(2, 3, 4)).all()
    # Nothing is kept, so that only the place among the inputs can tell the two apart.
    assert (first[0] != first[1]).any()


def test_without_a_seed_the_global_state_decides(either):
    (image,) = some_images(1)
    runs = []
    for seed in (1, 1, 2):
        transformers.set_seed(seed)
        runs.append(arrays([either(image), either(image)]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any() and (runs[0][0] != runs[0][1]).any()
    state = torch.get_rng_state()
    either(image, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_options_given_to_the_pipeline_are_defaults(folders, no_question):
    images = some_images(2)
    completer = pipeline(
        "image-completion", model=str(folders / "causal"), rows_kept=2, num_images=2, seed=5, temperature=0.5
    )
    plain = pipeline("image-completion", model=str(folders / "causal"))
    options = {"rows_kept": 2, "num_images": 2, "seed": 5, "temperature": 0.5}
    np.testing.assert_array_equal(arrays(completer(images)), arrays(plain(images, **options)))
    options |= {"rows_kept": 1, "num_images": 1}
    drawn = completer(images, rows_kept=1, num_images=1)
    np.testing.assert_array_equal(arrays(drawn), arrays(plain(images, **options)))
    below = np.arange(3)[:, None].repeat(4, axis=1) >= 1
    np.testing.assert_array_equal(arrays(completer(images, mask=below, num_images=1)), arrays(drawn))


@pytest.mark.parametrize("head", ["causal", "masked"])
def test_a_folder_is_enough(folders, models, processor, head, no_question):
    """With the package nothing of the folder's code is run, trusted or not."""
    (image,) = some_images(1)
    expected = ImageCompletionPipeline(models[head], image_processor=processor)(image, seed=3)
    for trusted in (None, False, True):
        completer = pipeline("image-completion", model=str(folders / head), trust_remote_code=trusted)
        assert type(completer) is ImageCompletionPipeline and type(completer.model) is type(models[head])
        np.testing.assert_array_equal(arrays(completer(image, seed=3)), arrays(expected))
    assert not [name for name in sys.modules if name.startswith("transformers_modules.causal")]


def test_dropout_is_off(processor):
    model = tiny_causal(torch.float32, embd_pdrop=0.5).train()
    (image,) = some_images(1)
    completer = ImageCompletionPipeline(model, image_processor=processor)
    np.testing.assert_array_equal(arrays(completer(image, seed=3)), arrays(completer(image, seed=3)))
    assert model.training


# Regions


HOLE = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]], dtype=bool)


def test_a_masked_model_fills_a_hole(masked, processor):
    images = some_images(3, 6, 8)
    drawn = arrays(masked(images, mask=HOLE, num_images=2, seed=5, num_steps=2, order="confidence"))
    tokens = processor(images).input_ids
    given = np.broadcast_to(arrays(processor.decode(tokens))[:, None], drawn.shape)
    np.testing.assert_array_equal(drawn[:, :, ~HOLE], given[:, :, ~HOLE])
    assert (drawn[:, :, HOLE] != given[:, :, HOLE]).any(axis=(2, 3)).all()
    expected = inpaint(masked.model, tokens, HOLE, num_samples=2, seed=5, num_steps=2, order="confidence")
    np.testing.assert_array_equal(drawn, arrays([processor.decode(row) for row in expected]))


def test_every_kind_of_mask(masked, tmp_path):
    (image,) = some_images(1, 6, 8)
    expected = arrays(masked(image, mask=HOLE, seed=5))
    white = Image.fromarray(HOLE.astype(np.uint8) * 255)
    white.save(tmp_path / "mask.png")
    np.save(tmp_path / "mask.npy", HOLE * 0.5)
    for same in (
        torch.from_numpy(HOLE),
        HOLE.astype(int),
        HOLE.tolist(),
        white,
        white.convert("RGB"),
        Image.open(tmp_path / "mask.png"),
        str(tmp_path / "mask.png"),
        tmp_path / "mask.npy",
    ):
        np.testing.assert_array_equal(arrays(masked(image, mask=same, seed=5)), expected)


def test_nothing_under_a_mask_of_the_images_size_is_read(masked, processor):
    (image,) = some_images(1, 30, 28)
    mask = np.zeros((30, 28), dtype=bool)
    mask[8:12, 9:20] = True
    black, white = (np.where(mask[..., None], level, image).astype(np.uint8) for level in (0, 255))
    drawn = arrays(masked(black, mask=mask, seed=5, num_images=4))
    np.testing.assert_array_equal(drawn, arrays(masked(white, mask=mask, seed=5, num_images=4)))
    assert (drawn != drawn[0]).any()
    # It matters: tokens that the mask covers by less than a half differ, and would have been kept.
    tokens = processor([black, white]).input_ids.reshape(2, 3, 4)
    covered = mask.reshape(3, 10, 4, 7).mean(axis=(1, 3))
    assert ((tokens[0] != tokens[1]) & (covered < 0.5)).any()
    assert (tokens[0] == tokens[1])[~processor.fit_mask(mask)].all() and not processor.fit_mask(mask).all()


def test_a_next_pixel_model_goes_on_from_any_pixel(causal, processor):
    (image,) = some_images(1)
    region = np.arange(12).reshape(GRID) >= 6
    drawn = arrays(causal(image, mask=region, num_images=5, seed=2))
    given = arrays(processor.decode(processor(image).input_ids))[0]
    assert (drawn[:, ~region] == given[~region]).all()
    assert (drawn[:, region] != given[region]).any(axis=(1, 2)).all()


def test_a_mask_of_the_lower_part_of_a_large_image(causal):
    (image,) = some_images(1, 30, 40)
    mask = Image.new("L", (40, 30))
    mask.paste(255, (0, 20, 40, 30))
    # The mean of an upper token reaches below its own rows, into the mask: only the first row is left.
    drawn = causal(image, mask=mask, seed=2, num_images=3)
    np.testing.assert_array_equal(arrays(drawn), arrays(causal(image, rows_kept=1, seed=2, num_images=3)))


def test_regions_of_their_own(either):
    images = some_images(4, 6, 8)
    below = np.arange(12).reshape(GRID) >= 7
    inputs = [
        {"image": images[0], "rows_kept": 0},
        {"image": images[1], "mask": below},
        images[2],
        {"image": images[3]},
    ]
    expected = [
        either(images, rows_kept=0, seed=5)[0],
        either(images, mask=below, seed=5)[1],
        *either(images, rows_kept=2, seed=5)[2:],
    ]
    for batch_size in (1, 4):
        drawn = either(inputs, rows_kept=2, seed=5, batch_size=batch_size)
        np.testing.assert_array_equal(arrays(drawn), arrays(expected))


# Mistakes in completions


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"rows_kept": 3}, "image 0: `rows_kept` must be from 0 to 2 for a grid 3 high, got 3"),
        ({"rows_kept": 1.5}, "`rows_kept` must be from 0 to 2.*got 1.5"),
        ({"rows_kept": 1, "mask": HOLE}, "`mask` and `rows_kept` both say what is drawn"),
        ({"mask": np.zeros(GRID)}, "image 0: `mask` hides nothing"),
        ({"mask": np.ones((4, 3))}, "3 high and 4 wide, or of the image, 6 high and 8 wide, got 4 high and 3 wide"),
        ({"mask": np.ones((3, 4, 3))}, r"`mask` must have the shape \(height, width\), got \(3, 4, 3\)"),
        ({"mask": [[1, 0], [1]]}, "`mask` must"),
        ({"mask": "nothing.png"}, "Mask 'nothing.png' can't be read as a PNG"),
        ({"mask": object()}, "`mask` must be an array of numbers or truth values.*got object"),
        ({"num_images": 0}, "`num_images` must be a whole number of at least 1, got 0"),
        ({"num_images": True}, "`num_images` must be a whole number of at least 1, got True"),
        ({"seed": -1}, "`seed` must be a whole number of at least 0, got -1"),
        ({"seed": "x"}, "`seed` must be a whole number of at least 0, got 'x'"),
        ({"temperature": 0}, "`temperature` must be above 0 and finite.*got 0"),
        ({"temperature": "hot"}, "`temperature` must be above 0 and finite.*got 'hot'"),
        ({"top_k": -1}, "`top_k` must be a whole number of at least 0.*got -1"),
        ({"top_p": 2}, "`top_p` must be above 0 and at most 1, got 2"),
        ({"max_length": 5}, "Unknown option 'max_length'. Options: mask, rows_kept, num_images"),
    ],
)
def test_wrong_options(either, options, pattern):
    either.model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    (image,) = some_images(1, 6, 8)
    try:
        with pytest.raises(ValueError, match=pattern):
            either(image, **options)
    finally:
        either.model._forward_pre_hooks.clear()


@pytest.mark.parametrize(
    ("inputs", "pattern"),
    [
        ({"mask": HOLE}, "a dictionary must have `image`, and may have `mask` or `rows_kept`, got 'mask'"),
        ({"image": "a.png", "masks": HOLE}, "got 'image', 'masks'"),
        ({}, "got nothing"),
        ({"image": np.zeros((3, 4, 3), np.uint8), "mask": HOLE, "rows_kept": 1}, "give one of them"),
        ([np.zeros((6, 8, 3), np.uint8), np.zeros((2, 6, 8, 3), np.uint8)], "image 1: an array inside a list"),
        ([None], "image 0: an image must be a Pillow image"),
    ],
)
def test_wrong_inputs(either, inputs, pattern):
    with pytest.raises(ValueError, match=pattern):
        either(inputs)


def test_a_next_pixel_model_cannot_fill_holes(causal):
    images = [some_images(1)[0], {"image": some_images(1)[0], "mask": HOLE}]
    with pytest.raises(ValueError, match="image 1: .*only draw what comes after.*`rows_kept`.*a masked model"):
        causal(images)


@pytest.mark.parametrize("option", [{"num_steps": 3}, {"order": "random"}, {"schedule": "linear"}])
def test_options_of_masked_models(causal, masked, option):
    (image,) = some_images(1)
    with pytest.raises(ValueError, match=f"`{next(iter(option))}` has no effect: this is a next-pixel model"):
        causal(image, **option)
    assert len(masked(image, **option)) == 1


def test_options_that_need_each_other(masked, models, processor):
    (image,) = some_images(1)
    with pytest.raises(ValueError, match='`choice_temperature` has no effect with order="random"'):
        masked(image, choice_temperature=0.0)
    sure = ImageCompletionPipeline(models["masked"], image_processor=processor, order="confidence", seed=3)
    drawn = arrays(sure(image, choice_temperature=0.0))
    expected = masked(image, choice_temperature=0.0, order="confidence", seed=3)
    np.testing.assert_array_equal(drawn, arrays(expected))


@pytest.mark.parametrize("head", ["backbone", "classifier"])
def test_models_that_draw_nothing(models, processor, head):
    with pytest.raises(ValueError, match="must be a next-pixel or masked head of hf_igpt, got hf_igpt.modeling_igpt"):
        ImageCompletionPipeline(models[head], image_processor=processor)


@pytest.mark.parametrize("pipeline_class", [ImageCompletionPipeline, ImageGPTFeatureExtractionPipeline])
def test_parts_that_do_not_belong_together(models, processor, pipeline_class):
    palette = processor.palette
    wrong = {
        "tokens of 9 values on a grid of 3 x 4": IGPTImageProcessor(
            size={"height": 3, "width": 4}, palette=palette[:9]
        ),
        "on a grid of 4 x 3": IGPTImageProcessor(size={"height": 4, "width": 3}, palette=palette),
        "no `palette` yet": IGPTImageProcessor(size={"height": 3, "width": 4}),
        "must be the IGPTImageProcessor that belongs to the model, got NoneType": None,
    }
    for pattern, other in wrong.items():
        with pytest.raises(ValueError, match=pattern):
            pipeline_class(models["causal"], image_processor=other)
    native = native_model("causal", vocab_size=11, n_positions=12)
    with pytest.raises(ValueError, match="of hf_igpt, got transformers.models.imagegpt"):
        pipeline_class(native, image_processor=processor)


# Features


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("layer", [None, 0, 1, 2])
def test_pooled_features_are_those_of_the_model(models, processor, head, layer):
    model, images = models[head], some_images(3, 6, 8)
    extractor = pipeline("igpt-feature-extraction", model=model, image_processor=processor)
    assert type(extractor) is ImageGPTFeatureExtractionPipeline
    tokens = processor(images, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model.pooled_features(tokens, layer)
        raw = model.base_model(input_ids=tokens).last_hidden_state.mean(dim=1)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    # Without the start token in front, a next-pixel model gives others.
    assert torch.allclose(raw, expected, atol=1e-3) == (head.startswith("masked") and layer in (None, 2))
    drawn = extractor(images, pool=True, layer=layer, return_tensors=True, batch_size=2)
    assert [features.shape for features in drawn] == [(1, 24)] * 3
    torch.testing.assert_close(torch.cat(drawn), expected, atol=1e-5, rtol=0)
    as_lists = extractor(images[1], pool=True, layer=layer if layer is None else np.int64(layer))
    torch.testing.assert_close(torch.tensor(as_lists), expected[1:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["causal", "masked"])
def test_features_of_positions(models, processor, head):
    model, images = models[head], some_images(2)
    extractor = ImageGPTFeatureExtractionPipeline(models[head], image_processor=processor)
    tokens = processor(images, return_tensors="pt").input_ids
    with torch.no_grad():
        last, middle = model.transformer.encode(tokens).last_hidden_state, model.transformer.features(tokens, 1)
    torch.testing.assert_close(torch.cat(extractor(images, return_tensors=True)), last, atol=1e-5, rtol=0)
    found = torch.cat(extractor(images, layer=1, return_tensors=True, batch_size=2))
    torch.testing.assert_close(found, middle, atol=1e-5, rtol=0)
    assert found.shape == (2, 12, 24)


def test_the_layer_of_the_config(processor):
    model, (image,) = tiny_causal(torch.float32, pooler_layer=1), some_images(1)
    extractor = ImageGPTFeatureExtractionPipeline(model, image_processor=processor, pool=True)
    tokens = processor(image, return_tensors="pt").input_ids
    expected = model.pooled_features(tokens, 1).detach()
    torch.testing.assert_close(torch.tensor(extractor(image)), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected, model.pooled_features(tokens, 2), atol=1e-2)


def test_features_of_a_stream(models, processor):
    images = some_images(3)
    extractor = ImageGPTFeatureExtractionPipeline(models["causal"], image_processor=processor)
    expected = extractor(images, pool=True)
    for stream in ((image for image in images), Images(images), tuple(images)):
        assert list(extractor(stream, pool=True)) == expected
    stack = np.stack([np.asarray(image) for image in images])
    assert extractor(stack, pool=True, input_data_format="channels_last") == expected


@pytest.mark.parametrize("head", HEADS)
def test_features_by_the_name_of_transformers_own_task(folders, models, processor, head, no_question):
    """Which is another pipeline, so that the folder's code must be trusted, with the package too."""
    (image,) = some_images(1)
    tokens = processor(image, return_tensors="pt").input_ids
    expected = models[head].pooled_features(tokens).detach()
    for trusted in (None, False):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            pipeline("image-feature-extraction", model=str(folders / head), trust_remote_code=trusted)
    extractor = pipeline("image-feature-extraction", model=str(folders / head), trust_remote_code=True)
    assert type(extractor.model) is hf_igpt.ImageGPTModel
    torch.testing.assert_close(torch.tensor(extractor(image, pool=True)), expected, atol=1e-5, rtol=0)
    ours = pipeline("igpt-feature-extraction", model=str(folders / head))
    torch.testing.assert_close(torch.tensor(ours(image, pool=True)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["causal", "backbone"])
def test_transformers_own_feature_pipeline_is_not_wrong_in_silence(models, processor, head, caplog):
    (image,) = some_images(1)
    extractor = pipeline("image-feature-extraction", model=models[head], image_processor=processor)
    assert type(extractor) is ImageFeatureExtractionPipeline
    with captured_warnings(caplog):
        extractor(image)
    assert "do not begin with the start token" in caplog.text and "`pooled_features`" in caplog.text
    with pytest.raises(ValueError, match="No pooled output"):
        extractor(image, pool=True)


def test_the_package_itself_is_not_warned(causal, models, processor, caplog):
    (image,) = some_images(1)
    with captured_warnings(caplog):
        causal(image)
        for model in models.values():
            ImageGPTFeatureExtractionPipeline(model, image_processor=processor)(image, pool=True)
        models["classifier"](input_ids=processor(image, return_tensors="pt").input_ids)
        models["causal"].generate(use_cache=False)
    assert not caplog.text


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"layer": 3}, "`layer` must be from 0 to 2, got 3"),
        ({"layer": -1}, "`layer` must be from 0 to 2, got -1"),
        ({"layer": 1.0}, "`layer` must be from 0 to 2, got 1.0"),
        ({"layr": 1}, "Unknown option 'layr'. Options: pool, layer"),
    ],
)
def test_wrong_options_of_features(models, processor, options, pattern):
    extractor = ImageGPTFeatureExtractionPipeline(models["causal"], image_processor=processor)
    with pytest.raises(ValueError, match=pattern):
        extractor(some_images(1)[0], **options)


# Classification by transformers' own pipeline


@pytest.mark.parametrize("head", ["classifier", "masked classifier"])
def test_classes_are_those_of_the_logits(folders, models, processor, head, no_question):
    images = some_images(4, 6, 8)
    classifier = pipeline("image-classification", model=str(folders / head))
    assert type(classifier) is transformers.ImageClassificationPipeline
    with torch.no_grad():
        logits = models[head](input_ids=processor(images, return_tensors="pt").input_ids).logits
    assert logits.std(dim=0).min() > 0.05
    for answers, row in zip(classifier(images, batch_size=2), logits, strict=True):
        assert answers[0]["label"] == "abc"[row.argmax()]
        scores = {answer["label"]: answer["score"] for answer in answers}
        torch.testing.assert_close(torch.tensor([scores[label] for label in "abc"]), row.softmax(0), atol=1e-5, rtol=0)
    assert len(classifier(images[0], top_k=2)) == 2


# Saving


@pytest.mark.parametrize("task", REGISTERED_PIPELINES)
def test_a_saved_pipeline_is_the_checkpoint_again(folders, task, tmp_path):
    made = pipeline(task, model=str(folders / "masked"))
    made.save_pretrained(tmp_path)
    names = {path.name for path in (folders / "masked").iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == names
    if task == "image-completion":
        for name in names:
            assert (tmp_path / name).read_bytes() == (folders / "masked" / name).read_bytes(), name


def test_pipelines_of_others_in_a_config_are_kept(tmp_path):
    own = {"impl": "mine.Mine", "pt": ["AutoModel"]}
    config = tiny_config(custom_pipelines={"mine": own})
    assert config.to_dict()["custom_pipelines"] == {"mine": own, **CUSTOM_PIPELINES}
    config.save_pretrained(tmp_path)
    loaded = ImageGPTConfig.from_pretrained(tmp_path)
    stock = "image-feature-extraction"
    assert loaded.custom_pipelines == {"mine": own, stock: CUSTOM_PIPELINES[stock]}
    assert loaded.to_dict()["custom_pipelines"] == {"mine": own, **CUSTOM_PIPELINES}
    for wrong in (3, ["image-completion"], None):
        with pytest.raises(ValueError, match="`custom_pipelines` must be an object"):
            tiny_config(custom_pipelines=wrong)
