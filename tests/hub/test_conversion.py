"""OpenAI's checkpoints and transformers' ImageGPT become ours, and ours transformers', with equal numbers."""

import io
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from native_models import native_model, outputs_of
from openai_graph import forward, graph_shapes, make_variables
from tiny_models import random_tokens, randomize_, tiny_causal, tiny_config, tiny_masked
from transformers import ImageGPTForCausalImageModeling as NativeCausal

from hf_igpt import (
    IGPTImageProcessor,
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTForMaskedImageModeling,
)
from hf_igpt.commands import convert_checkpoint
from hf_igpt.hub.conversion import convert, to_native
from hf_igpt.hub.openai import check_shapes, read_centers, read_variables


VALUES, TOKENS = 10, 16
# An array file whose header claims terabytes.
HUGE = (
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3), }".ljust(128) + b"\n"
)


def _archive(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


def write_checkpoint(folder: Path, variables: dict[str, np.ndarray], shards: int = 3) -> Path:
    """With the scope and beside what a training run's saver adds."""
    folder.mkdir(parents=True, exist_ok=True)
    scoped = {f"model/{name}": array for name, array in variables.items()}
    np.savez(folder / "variables.npz", **scoped)
    prefix = folder / "model.ckpt-1000000"
    script = Path(__file__).with_name("write_tensorflow.py")
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(script), str(folder / "variables.npz"), str(prefix), str(shards)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(list(folder.glob("*.data-*"))) == shards
    centers = np.random.default_rng(0).uniform(-1, 1, (variables["wte"].shape[0], 3)).astype(np.float32)
    np.save(folder / "kmeans_centers.npy", centers)
    return prefix


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Next-pixel and masked checkpoints as OpenAI's, and their variables."""
    folder = tmp_path_factory.mktemp("released")
    found = {}
    for name in ("next_pixel", "bert"):
        variables = make_variables(bert=name == "bert")
        found[name] = (write_checkpoint(folder / name, variables), variables)
    return found


def images_and_masks(count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    return generator.integers(0, VALUES, (count, TOKENS)), generator.uniform(size=(count, TOKENS)) > 0.4


# The numbers


@torch.no_grad()
def test_next_pixel_logits_and_loss_are_the_graphs(released, tmp_path):
    prefix, variables = released["next_pixel"]
    convert(str(prefix)).save(tmp_path)
    model = ImageGPTForCausalImageModeling.from_pretrained(tmp_path, dtype=torch.float64).eval()
    images, _ = images_and_masks()
    outputs = model(labels=torch.from_numpy(images))
    expected = [forward(variables, image) for image in images]
    logits = np.stack([logits for logits, _ in expected])
    assert 0.3 < logits.std() < 5 and np.abs(logits[0] - logits[1]).max() > 0.1
    np.testing.assert_allclose(outputs.logits.numpy(), logits, atol=1e-10)
    assert outputs.loss.item() == pytest.approx(np.mean([loss for _, loss in expected]), abs=1e-10)


@torch.no_grad()
def test_masked_logits_and_loss_are_the_graphs(released, tmp_path):
    prefix, variables = released["bert"]
    convert(str(prefix)).save(tmp_path)
    model = ImageGPTForMaskedImageModeling.from_pretrained(tmp_path, dtype=torch.float64).eval()
    images, hidden = images_and_masks()
    outputs = model(torch.from_numpy(images), bool_masked_pos=torch.from_numpy(hidden))
    expected = [forward(variables, image, ~mask) for image, mask in zip(images, hidden, strict=True)]
    np.testing.assert_allclose(outputs.logits.numpy(), [logits for logits, _ in expected], atol=1e-10)
    assert outputs.loss.item() == pytest.approx(np.mean([loss for _, loss in expected]), abs=1e-10)
    assert not model.transformer.wte.weight[-1].any()


@pytest.mark.parametrize("bert", [False, True])
@pytest.mark.parametrize(
    ("width", "layers", "heads", "parameters"), [(512, 24, 8, 76e6), (1024, 36, 8, 455e6), (1536, 48, 16, 1362e6)]
)
def test_the_released_sizes_have_the_papers_parameters(width, layers, heads, parameters, bert):
    shapes = graph_shapes(values=512, side=32, width=width, heads=heads, layers=layers, bert=bert)
    assert sum(math.prod(shape) for shape in shapes.values()) == pytest.approx(parameters, rel=0.01)
    check_shapes("released", shapes)
    with pytest.raises(ValueError, match="missing h3/ln_2/g"):
        check_shapes("released", {name: shape for name, shape in shapes.items() if name != "h3/ln_2/g"})


def test_the_palette_is_that_of_the_centers(released):
    prefix, _ = released["next_pixel"]
    centers = np.load(prefix.parent / "kmeans_centers.npy").astype(np.float64)
    processor = convert(str(prefix)).processor
    np.testing.assert_array_equal(processor.palette, 127.5 * (centers + 1))
    assert processor.grid == (4, 4)
    # What the released sampler paints (src/run.py).
    painted = np.rint(127.5 * (centers[np.arange(TOKENS) % VALUES] + 1)).astype(np.uint8).reshape(4, 4, 3)
    (image,) = processor.decode(torch.arange(TOKENS)[None] % VALUES)
    np.testing.assert_array_equal(np.asarray(image), painted)


def test_what_a_training_run_saves_beside_the_model_is_left_out(released, tmp_path):
    _, variables = released["next_pixel"]
    slots = {f"{name}/Adam": array for name, array in variables.items()}
    prefix = write_checkpoint(tmp_path, variables | slots, shards=2)
    read = read_variables(prefix)
    assert read.keys() == variables.keys()
    for name, array in variables.items():
        np.testing.assert_array_equal(read[name], array)


# Files that are damaged or something else


def copied(released, tmp_path) -> Path:
    source = released["next_pixel"][0]
    for file in source.parent.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / source.name


def refused(prefix: Path, tmp_path: Path, capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        convert_checkpoint.main(["--source", str(prefix), "--output_dir", str(tmp_path / "out"), *arguments])
    assert end.value.code == 1
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".partial*"))
    return capsys.readouterr().err.splitlines()[-1]


def test_a_missing_shard_is_named(released, tmp_path, capsys):
    prefix = copied(released, tmp_path)
    (tmp_path / f"{prefix.name}.data-00001-of-00003").unlink()
    assert "lacks model.ckpt-1000000.data-00001-of-00003 (1 of 3" in refused(prefix, tmp_path, capsys)


@pytest.mark.parametrize("file", ["data-00000-of-00003", "data-00002-of-00003", "index"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_a_cut_file_is_an_error(released, tmp_path, capsys, file, kept):
    prefix = copied(released, tmp_path)
    path = tmp_path / f"{prefix.name}.{file}"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    message = refused(prefix, tmp_path, capsys)
    assert "can't be read" in message


@pytest.mark.parametrize("file", ["data-00000-of-00003", "index"])
def test_a_pickle_in_place_of_a_file_is_not_run(released, tmp_path, capsys, file):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    prefix = copied(released, tmp_path)
    (tmp_path / f"{prefix.name}.{file}").write_bytes(pickle.dumps(Payload()))
    assert "can't be read" in refused(prefix, tmp_path, capsys)
    assert not (tmp_path / "ran").exists()


def test_changed_bytes_are_an_error(released, tmp_path, capsys):
    prefix = copied(released, tmp_path)
    path = tmp_path / f"{prefix.name}.data-00001-of-00003"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "can't be read" in refused(prefix, tmp_path, capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h1/mlp/c_fc/w": None}, "missing h1/mlp/c_fc/w"),
        ({"extra": np.zeros(3, np.float32)}, "unknown extra"),
        ({"h0/attn/k_proj": np.zeros((3, 8, 25), np.float32)}, "`h0/attn/k_proj` must be of shape (6, 4, 24)"),
        ({"wpe": np.zeros((15, 24), np.float32)}, "15 positions a square image"),
        ({"ln_f/g": np.full(24, np.nan, np.float32)}, "`ln_f/g` has 24 values that are not finite"),
        ({"wte": np.zeros((10, 24), np.float64)}, "`wte` must be float32, got float64"),
    ],
)
def test_other_variables_are_an_error(tmp_path, capsys, change, message):
    variables = {name: array for name, array in (make_variables() | change).items() if array is not None}
    prefix = write_checkpoint(tmp_path, {"wte": np.zeros((10, 24), np.float32)} | variables, shards=1)
    assert message in refused(prefix, tmp_path, capsys)


@pytest.mark.parametrize(
    ("palette", "message"),
    [
        (np.zeros((9, 3)), "has 9 colours, but"),
        (np.zeros((10, 4)), "must hold floats of shape (colours, 3)"),
        (np.full((10, 3), 2.0), "values must be from -1 to 1"),
        (np.full((10, 3), np.nan), "values must be from -1 to 1"),
        (np.array([["a", None, object()]] * 10, dtype=object), "is no palette"),
        (
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3), }",
            "is no palette",
        ),
        (HUGE, "is no palette"),
        (_archive(np.zeros((10, 3))), "is no palette"),
        (b"\x80\x04N.", "is no palette"),
        (None, "There is no"),
    ],
)
def test_other_palettes_are_an_error(released, tmp_path, capsys, palette, message):
    path = tmp_path / "centers.npy"
    if isinstance(palette, bytes):
        path.write_bytes(palette)
    elif palette is not None:
        np.save(path, palette, allow_pickle=True)
    assert message in refused(released["next_pixel"][0], tmp_path, capsys, "--palette", str(path))


def test_a_palette_that_runs_code_is_not_unpickled(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.save(tmp_path / "centers.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="is no palette"):
        read_centers(tmp_path / "centers.npy")
    assert not (tmp_path / "ran").exists()


# transformers' ImageGPT


def native_folder(folder: Path, model) -> Path:
    model.save_pretrained(folder)
    config = {
        "image_processor_type": "ImageGPTImageProcessor",
        "clusters": np.random.default_rng(0).uniform(-1, 1, (VALUES, 3)).tolist(),
        "do_normalize": True,
        "do_resize": True,
        "resample": 2,
        "size": {"height": 4, "width": 4},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("head", ["causal", "classifier", "backbone"])
def test_there_and_back_gives_the_same_bytes(tmp_path, head):
    native = native_model(head)
    source = native_folder(tmp_path / "native", native)
    ours, back = tmp_path / "ours", tmp_path / "back"
    convert(str(source)).save(ours)
    converted = convert(str(ours), "imagegpt")
    converted.save(back)
    assert type(converted.model) is type(native)
    before, after = native.state_dict(), converted.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = type(native).from_pretrained(back).eval()
    tokens = torch.randint(0, VALUES, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(outputs_of(again, tokens), outputs_of(native, tokens), atol=0, rtol=0)
    old, new = (json.loads((folder / "preprocessor_config.json").read_text()) for folder in (source, back))
    np.testing.assert_allclose(new["clusters"], old["clusters"], atol=1e-15)
    assert new["size"] == old["size"]


def test_biases_that_are_all_zero_are_dropped_and_that_is_said(tmp_path, capsys):
    native = native_model("causal")
    with torch.no_grad():
        for name, parameter in native.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
    source = native_folder(tmp_path / "native", native)
    convert_checkpoint.main(["--source", str(source), "--output_dir", str(tmp_path / "ours")])
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results["metrics"]["notes"] == ["All 8 biases are zero and were dropped (`use_bias=False`)."]
    assert results == json.loads((tmp_path / "ours/results.json").read_text())
    ours = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "ours").eval()
    assert not ours.config.use_bias and not any(name.endswith(".bias") for name in ours.state_dict())
    tokens = torch.randint(0, VALUES, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(outputs_of(ours, tokens), outputs_of(native, tokens), atol=2e-5, rtol=0)
    # One that isn't zero keeps them all.
    with torch.no_grad():
        native.transformer.h[0].mlp.c_fc.bias[0] = 1e-3
    kept = convert(str(native_folder(tmp_path / "other", native)))
    assert kept.model.config.use_bias and kept.notes == []


def test_ours_without_biases_becomes_native_with_zeros():
    # Up to 5.20, transformers cuts the root of the head size to a whole number: let it be one.
    ours = tiny_causal(torch.float32, num_attention_heads=6)
    native = to_native(ours)
    assert isinstance(native, NativeCausal)
    ids = random_tokens(ours.config)
    torch.testing.assert_close(native(input_ids=ids).logits, ours(input_ids=ids).logits, atol=2e-5, rtol=0)
    biases = [parameter for name, parameter in native.named_parameters() if name.endswith(".bias")]
    assert len(biases) == 8 and not any(bias.any() for bias in biases)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: tiny_masked(torch.float32), "masked attention"),
        (lambda: tiny_causal(torch.float32, num_channels=3), "3 tokens a cell"),
        (
            lambda: randomize_(ImageGPTForImageClassification(tiny_config(num_labels=3))),
            "a classifier behind the start token",
        ),
    ],
)
def test_what_transformers_does_not_have_is_refused(model, reason):
    with pytest.raises(ValueError, match=f"transformers' ImageGPT has no {reason}"):
        to_native(model())


def test_released_to_native(released, tmp_path):
    """What transformers' own conversion script made of OpenAI's files."""
    prefix, variables = released["next_pixel"]
    convert(str(prefix), "imagegpt").save(tmp_path)
    native = NativeCausal.from_pretrained(tmp_path, dtype=torch.float64).eval()
    images, _ = images_and_masks()
    start = torch.full((len(images), 1), VALUES)
    ids = torch.cat([start, torch.from_numpy(images)[:, :-1]], dim=1)
    with torch.no_grad():
        logits = native(input_ids=ids).logits
    np.testing.assert_allclose(logits.numpy(), [forward(variables, image)[0] for image in images], atol=1e-8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give `--source`"),
        (["--source", "nowhere"], "nowhere is neither a TensorFlow checkpoint"),
        (["--source", "{native}", "--palette", "x.npy"], "`palette` is for TensorFlow checkpoints"),
        (["--source", "{bert}", "--target", "imagegpt"], "transformers' ImageGPT has no masked attention"),
    ],
)
def test_what_is_refused(released, tmp_path, capsys, arguments, message):
    native = native_folder(tmp_path / "native", native_model())
    places = {"native": str(native), "bert": str(released["bert"][0])}
    with pytest.raises(SystemExit) as end:
        convert_checkpoint.main([*(a.format(**places) for a in arguments), "--output_dir", str(tmp_path / "out")])
    assert end.value.code == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_replaced(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    native = native_folder(tmp_path / "native", native_model())
    with pytest.raises(SystemExit):
        convert_checkpoint.main(["--source", str(native), "--output_dir", str(tmp_path / "out")])
    assert (tmp_path / "out/thesis.txt").read_text() == "mine"
    capsys.readouterr()


def test_processor_of_ours_survives(tmp_path):
    model = tiny_causal(torch.float32)
    palette = np.random.default_rng(0).uniform(0, 255, (10, 3))
    folder = tmp_path / "ours"
    model.save_pretrained(folder)
    IGPTImageProcessor(
        size={"height": 3, "width": 4}, palette=palette, do_center_crop=True, crop_size=8
    ).save_pretrained(folder)
    converted = convert(str(folder), "imagegpt")
    assert converted.notes == ["transformers' image processor has no centre crop: crop images before it sees them."]
    converted.save(tmp_path / "native")
    again = IGPTImageProcessor.from_pretrained(tmp_path / "native")
    np.testing.assert_allclose(again.palette, palette, atol=1e-12)
