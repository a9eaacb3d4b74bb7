"""The sample command with a masked model, and with regions given as masks."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import randomize_, tiny_config

from hf_igpt import IGPTImageProcessor, ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling
from hf_igpt.commands.checkpoints import load_checkpoint
from hf_igpt.commands.sample import drawing_dtype
from hf_igpt.data import tokenize
from hf_igpt.data.token_store import save_tokens
from hf_igpt.regions_igpt import center_square, read_region


GREY = (225, 225, 230)
SIZES = {"vocab_size": 11, "image_size": [8, 8]}
# No two values of the palette are that grey.
PALETTE = np.arange(30).reshape(10, 3) * 7


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two checkpoints that were never trained, `masked` and `causal`, and ten tokenized images."""
    import datasets

    folder = tmp_path_factory.mktemp("made")
    processor = IGPTImageProcessor(size={"height": 8, "width": 8}, palette=PALETTE)
    for name, head in (("masked", ImageGPTForMaskedImageModeling), ("causal", ImageGPTForCausalImageModeling)):
        randomize_(head(tiny_config(**SIZES))).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    images = datasets.Dataset.from_dict({"image": list(map(Image.fromarray, pixels))})
    save_tokens(datasets.DatasetDict({"test": tokenize(images, processor)}), folder / "tokens")
    return folder


@pytest.fixture
def work(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "work"))


def arguments(model: str, *more) -> list:
    small = ["--num_completions", 2, "--completions_per_image", 2, "--cpu_threads", 1, "--device", "cpu"]
    return ["--model", model, "--num_samples", 2, *small, *more]


def rows_of(picture: Path, columns: int = 4) -> np.ndarray:
    """Images of a grid of completions in their own size, of shape (rows, columns, 8, 8, 3)."""
    with Image.open(picture) as image:
        pixels = np.asarray(image)
    cells = [
        [pixels[22 + 100 * row :, 4 + 100 * column :][:96:12, :96:12] for column in range(columns)] for row in range(2)
    ]
    return np.array(cells)


def write_mask(path: Path, region: np.ndarray) -> str:
    Image.fromarray(region.astype(np.uint8) * 255).save(path)
    return path.name


# Drawing


def test_the_checkpoint_says_which_head(made):
    for name, head in (("masked", ImageGPTForMaskedImageModeling), ("causal", ImageGPTForCausalImageModeling)):
        model, _, digest = load_checkpoint(str(made / name))
        assert type(model) is head and not model.training and len(digest) == 64
        expected = randomize_(head(tiny_config(**SIZES))).state_dict()
        assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.items())


@pytest.mark.parametrize(("model", "dtype"), [("masked", "auto"), ("causal", "bfloat16")])
def test_both_objectives_complete_the_upper_half(run, work, model, dtype):
    ended = run("sample", *arguments(model, "--dtype", dtype), cwd=work)
    assert ended.status == 0, ended.stderr
    assert ended.results["arguments"]["dtype"] == dtype
    folder = work / "samples-final"
    assert {path.name for path in folder.iterdir()} >= {"samples.png", "completions.png"}
    given, first, second, original = np.moveaxis(rows_of(folder / "completions.png"), 1, 0)
    assert (given[:, 4:] == GREY).all() and (given[:, :4] == original[:, :4]).all()
    for drawn in (first, second):
        assert (drawn[:, :4] == original[:, :4]).all() and (drawn[:, 4:] != original[:, 4:]).any()
    assert (first != second).any()


def test_half_precision_is_for_gpus_by_default():
    found = {device: drawing_dtype("auto", device) for device in ("cpu", "mps", "cuda")}
    assert found == {"cpu": torch.float32, "mps": torch.float32, "cuda": torch.bfloat16}
    assert drawing_dtype("float32", "cuda") is torch.float32


def test_a_hole_is_inpainted(run, work):
    """The same for every way to give it: a word, a PNG, an array; and not drawn again."""
    options = ["--num_steps", 5, "--order", "confidence"]
    ended = run("sample", *arguments("masked", "--mask", "center", *options), cwd=work)
    assert ended.status == 0, ended.stderr
    assert ended.results["arguments"]["order"] == "confidence" and ended.results["arguments"]["num_steps"] == 5
    picture = work / "samples-final/inpainted.png"
    assert not (work / "samples-final/completions.png").exists()
    region = np.zeros((8, 8), dtype=bool)
    region[2:6, 2:6] = True
    given, first, second, original = np.moveaxis(rows_of(picture), 1, 0)
    assert (given[:, region] == GREY).all() and (given[:, ~region] == original[:, ~region]).all()
    for drawn in (first, second):
        assert (drawn[:, ~region] == original[:, ~region]).all() and (drawn[:, region] != original[:, region]).any()
    before = hashlib.sha256(picture.read_bytes()).hexdigest(), picture.stat().st_mtime_ns
    np.save(work / "hole.npy", region * 0.5)
    for mask in (write_mask(work / "hole.png", region), "hole.npy"):
        again = run("sample", *arguments("masked", "--mask", mask, *options), cwd=work)
        assert again.status == 0 and again.stdout == ended.stdout
        assert before == (hashlib.sha256(picture.read_bytes()).hexdigest(), picture.stat().st_mtime_ns)
    # Under an old name, another hole is another picture.
    write_mask(work / "hole.png", ~region)
    cause = run("sample", *arguments("masked", "--mask", "hole.png", *options), cwd=work).cause
    assert "mask was" in cause and "hole.png" not in cause
    cause = run("sample", *arguments("masked", "--mask", "center", "--num_steps", 4), cwd=work).cause
    assert "num_steps was 5 and is now 4" in cause and "order was 'confidence' and is now None" in cause


def test_a_next_pixel_model_takes_the_mask_of_a_lower_part(run, work):
    region = np.repeat(np.arange(8) >= 5, 8).reshape(8, 8)
    mask = write_mask(work / "below.png", region)
    assert run("sample", *arguments("causal", "--mask", mask), cwd=work).status == 0
    assert run("sample", *arguments("causal", "--rows_kept", 5, "--output_dir", "rows"), cwd=work).status == 0
    pictures = work / "samples-final/inpainted.png", work / "rows/completions.png"
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_pixels_forecast_several_a_pass_give_the_same_pictures(run, work):
    options = ["--parallel_window", 6, "--forecast", "shallow_exit", "--exit_layer", 1, "--output_dir", "parallel"]
    for more in ([], options):
        assert run("sample", *arguments("causal", *more), cwd=work).status == 0
    for name in ("samples.png", "completions.png"):
        assert (work / "parallel" / name).read_bytes() == (work / "samples-final" / name).read_bytes()


# Mistakes


MISTAKES = [
    ("masked", ["--mask", "center", "--rows_kept", 4], "`mask` and `rows_kept` both say what is drawn"),
    ("masked", ["--mask", "center", "--num_completions", 0], "`mask` has no effect where `num_completions` is 0"),
    ("masked", ["--num_steps", 0], "`num_steps` must be at least 1, got 0"),
    ("masked", ["--order", "raster"], "`order` must be one of random, confidence, got 'raster'"),
    ("masked", ["--rows_kept", 8], "`rows_kept` must be from 0 to 7"),
    ("causal", ["--num_steps", 4], "`num_steps` has no effect: causal is a next-pixel model"),
    ("causal", ["--order", "random"], "`order` has no effect: causal is a next-pixel model"),
    ("masked", ["--parallel_window", 4], "`parallel_window` has no effect: masked is a masked model"),
    ("causal", ["--forecast", "above"], "`forecast` has no effect where `parallel_window` is"),
    ("causal", ["--parallel_window", 4, "--forecast", "guess"], "`forecast` must be one of fixed_point, above"),
    ("causal", ["--parallel_window", 4, "--exit_layer", 1], "`exit_layer` has no effect where `forecast` is"),
    ("causal", ["--mask", "center"], "can only draw what comes after the given pixels"),
    ("masked", ["--mask", "nothing.png"], "Mask 'nothing.png' can't be read as a PNG"),
    ("masked", ["--mask", "nothing.npy"], "Mask 'nothing.npy' can't be read as an .npy array"),
]


@pytest.mark.parametrize(("model", "options", "pattern"), MISTAKES)
def test_a_mistake_is_named_before_anything_is_drawn(run, work, model, options, pattern):
    ended = run("sample", *arguments(model, *options), cwd=work)
    assert pattern in ended.cause
    assert "Sampling" not in ended.stderr and not (work / "samples-final").exists()


# Mask files


@pytest.mark.parametrize(("grid", "square"), [((8, 8), (2, 6, 2, 6)), ((3, 8), (1, 2, 3, 4)), ((1, 1), (0, 1, 0, 1))])
def test_the_square_in_the_middle(grid, square):
    top, bottom, left, right = square
    expected = np.zeros(grid, dtype=bool)
    expected[top:bottom, left:right] = True
    np.testing.assert_array_equal(center_square(grid), expected)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_pixels_that_are_not_black(tmp_path, mode):
    region = np.random.default_rng(0).random((3, 5)) < 0.5
    if mode == "I;16":
        Image.fromarray(region.astype(np.uint16) * 40000).save(tmp_path / "mask.png")
    else:
        pixels = np.zeros((3, 5, 3), dtype=np.uint8)
        pixels[region, 2] = 255
        Image.fromarray(pixels).convert(mode, dither=Image.Dither.NONE).save(tmp_path / "mask.png")
        if mode == "1":
            Image.fromarray(region).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_region(tmp_path / "mask.png", (3, 5)), region)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_values_that_are_not_zero(tmp_path, dtype):
    region = np.random.default_rng(0).random((3, 5)) < 0.5
    values = np.where(
        region, np.array(-0.25, dtype) if dtype is np.float32 else np.array(1, dtype), np.array(0, dtype)
    )
    np.save(tmp_path / "mask.npy", values)
    read = read_region(tmp_path / "mask.npy", (3, 5))
    assert read.dtype == bool and type(read) is np.ndarray
    np.testing.assert_array_equal(read, region)


def save_part(path: Path, save) -> None:
    """The first bytes of what `save` writes."""
    save(path)
    path.write_bytes(path.read_bytes()[:60])


def save_header(path: Path, *shape: int) -> None:
    """The beginning of an array, with no values behind it."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})


def save_pickled(path: Path) -> None:
    np.save(path, np.full((3, 5), None), allow_pickle=True)


def save_zip(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, np.ones((3, 5)))


FILES = {
    "empty.png": (lambda path: path.write_bytes(b""), "can't be read as a PNG: .*empty"),
    "text.png": (lambda path: path.write_text("mask"), "can't be read as a PNG: .*not an image"),
    "folder.png": (lambda path: path.mkdir(), "can't be read as a PNG"),
    "photo.png": (lambda path: Image.new("RGB", (5, 3)).save(path, "JPEG"), "it is a JPEG file"),
    "part.png": (lambda path: save_part(path, Image.effect_noise((5, 3), 50).save), "can't be read as a PNG"),
    "wide.png": (lambda path: Image.new("L", (3, 5), 255).save(path), r"3 high and 5 wide, got shape \(5, 3\)"),
    "black.png": (lambda path: Image.new("L", (5, 3)).save(path), "hides nothing"),
    "empty.npy": (lambda path: path.write_bytes(b""), "can't be read as an .npy array"),
    "text.npy": (lambda path: path.write_text("mask"), "can't be read as an .npy array"),
    "objects.npy": (save_pickled, "can't be read as an .npy array: .*(?i:object)"),
    "zip.npy": (save_zip, "can't be read as an .npy array"),
    "words.npy": (lambda path: np.save(path, np.full((3, 5), "x")), "must hold numbers or truth values, got <U1"),
    "huge.npy": (lambda path: save_header(path, 1 << 40, 8), "can't be read as an .npy array"),
    "huger.npy": (lambda path: save_header(path, 1 << 80), "can't be read as an .npy array"),
    "negative.npy": (lambda path: save_header(path, -3, 5), "can't be read as an .npy array"),
    "part.npy": (lambda path: save_part(path, lambda part: np.save(part, np.ones((3, 5)))), "can't be read as an"),
    "flat.npy": (lambda path: np.save(path, np.ones(15)), r"shape \(height, width\), got \(15,\)"),
    "zero.npy": (lambda path: np.save(path, np.zeros((3, 5))), "hides nothing"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_mask(tmp_path, name):
    make, pattern = FILES[name]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=pattern) as caught:
        read_region(tmp_path / name, (3, 5))
    assert name in str(caught.value)
