"""What train_vqvae leaves, goes on from, and refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image
from tiny_recipe import write_images
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from hf_igpt import ImageGPTVQVAEConfig, ImageGPTVQVAEModel
from hf_igpt.data.pixels import PixelDataset
from hf_igpt.data.sources import load_images
from hf_igpt.evaluation.reconstruction import reconstruction_metrics
from hf_igpt.image_processing_igpt import IGPTImageProcessor
from hf_igpt.storage import is_complete
from hf_igpt.training.cost import vqvae_training_flops


TINY = {
    "output_dir": "out",
    "max_images": 40,
    "image_size": 8,
    "augmentation": "crop_flip",
    "augmentation_padding": 1,
    "downsampling": 2,
    "codebook_size": 24,
    "code_size": 4,
    "hidden_size": 8,
    "num_residual_blocks": 1,
    "residual_size": 8,
    "total_batch_size": 8,
    "max_steps": 6,
    "warmup_epochs": 0.2,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "eval_steps": 3,
    "save_steps": 2,
    "cpu_threads": 1,
    "report_to": "none",
}


def flags(**changes) -> list:
    return [item for name, value in (TINY | changes).items() for item in (f"--{name}", value)]


def logged(results: dict, name: str) -> list[float]:
    return [entry[name] for entry in results["log_history"] if name in entry]


def numbers(metrics: dict) -> dict[str, float]:
    """Without the SSIM that images as small as these don't have."""
    assert metrics["ssim"] is None
    return {name: value for name, value in metrics.items() if name != "ssim"}


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model/model.safetensors")


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory) -> tuple[Path, dict]:
    """A folder with a trained model in `out`, and its results."""
    folder = tmp_path_factory.mktemp("vqvae")
    ended = run("train_vqvae", *flags(), cwd=folder)
    assert ended.status == 0, ended.stderr
    return folder, ended.results


def test_what_it_leaves(finished):
    folder, results = finished
    out = folder / "out"
    assert {path.name for path in out.iterdir()} >= {"model", "loss.png", "reconstruction.png", "results.json"}
    assert is_complete(out / "model") and json.loads((out / "results.json").read_text()) == results
    for name in ("loss.png", "reconstruction.png"):
        with Image.open(out / name) as picture:
            assert len(picture.convert("RGB").getcolors(10**6)) > 2
    metrics = results["metrics"]
    assert (metrics["optimizer_steps"], metrics["images_seen"], metrics["grid"]) == (6, 48, [4, 4])
    assert metrics["receptive_field"] == 8 and results["resumed_from"] is None
    assert results["dataset"]["num_images"] == {"train": 40, "validation": 40, "test": 40}
    assert len(logged(results, "loss")) == 6 and len(logged(results, "eval_psnr_db")) == 2
    assert metrics["validation"]["psnr_db"] == pytest.approx(logged(results, "eval_psnr_db")[-1], rel=1e-4)
    assert metrics["validation"]["ssim"] is None and metrics["test"]["num_images"] == 40
    assert set(logged(results, "images_per_second")) and results["training_seconds"] > 0


def test_the_saved_model_is_what_was_measured(finished):
    folder, results = finished
    model = AutoModel.from_pretrained(folder / "out/model")
    assert type(model) is ImageGPTVQVAEModel and model.codes_hash == results["codes_hash"]
    assert int(model.quantizer.num_updates) == 6
    source = load_images("digits", max_images=40, label_column="none")
    for split in ("validation", "test"):
        images = PixelDataset(source.split(split), IGPTImageProcessor(size=8))
        found = numbers(reconstruction_metrics(model.eval(), images))
        assert found == pytest.approx(numbers(results["metrics"][split]), rel=1e-5), split


def test_a_finished_run_is_left_alone_and_belongs_to_its_options(run, finished):
    folder, results = finished
    again = run("train_vqvae", *flags(per_device_eval_batch_size=8, save_total_limit=1), cwd=folder)
    assert again.status == 0 and again.results == results and "eval_loss" not in again.stderr
    cause = run("train_vqvae", *flags(codebook_size=25, seed=1), cwd=folder).cause
    assert "codebook_size was 24 and is now 25" in cause and "seed was 0 and is now 1" in cause


@pytest.mark.parametrize("fault", ["kill before step 4", "kill before results"])
def test_a_killed_run_continues_to_the_same_weights(run, finished, tmp_path, fault):
    folder, results = finished
    assert run("train_vqvae", *flags(), cwd=tmp_path, fault=fault).status == -9
    assert not (tmp_path / "out/results.json").exists()
    ended = run("train_vqvae", *flags(), cwd=tmp_path)
    assert ended.status == 0, ended.stderr
    assert ended.results["resumed_from"] == {"4": "checkpoint-2", "s": "checkpoint-6"}[fault[-1]]
    assert ended.results["metrics"] == results["metrics"]
    assert ended.results["codes_hash"] == results["codes_hash"]
    for name, weight in weights_of(folder / "out").items():
        np.testing.assert_array_equal(weights_of(tmp_path / "out")[name], weight, err_msg=name)


def test_a_step_in_parts_and_on_two_processes_is_the_same_step(run, finished, tmp_path):
    folder, results = finished
    parts = run("train_vqvae", *flags(output_dir="parts", per_device_train_batch_size=2), cwd=tmp_path).results
    two = run.on_two_processes("train_vqvae", *flags(output_dir="two"), cwd=tmp_path).results
    assert (parts["processes"], two["processes"]) == (1, 2)
    for name, other in (("parts", parts), ("two", two)):
        assert logged(other, "loss") == pytest.approx(logged(results, "loss"), rel=1e-4), name
        found = numbers(other["metrics"]["test"])
        assert found == pytest.approx(numbers(results["metrics"]["test"]), rel=1e-3), name
        for key, weight in weights_of(folder / "out").items():
            np.testing.assert_allclose(weights_of(tmp_path / name)[key], weight, rtol=0, atol=1e-4, err_msg=key)


def test_a_collapsed_codebook_is_said(run, tmp_path):
    # Plain images: all vectors but those at the border are the same.
    (tmp_path / "plain").mkdir()
    for number in range(20):
        Image.new("RGB", (32, 32), (120, 120, 120)).save(tmp_path / f"plain/{number}.png")
    changes = {"dataset_name": "plain", "image_size": 32, "codebook_size": 200, "max_steps": 2, "eval_steps": 2}
    ended = run("train_vqvae", *flags(**changes), cwd=tmp_path)
    assert ended.status == 0, ended.stderr
    assert "The codebook has collapsed: " in ended.stderr and "`--revival_threshold`" in ended.stderr
    metrics = ended.results["metrics"]
    assert metrics["test"] is None and metrics["validation"]["codes_used"] < 20
    assert 0 < metrics["validation"]["ssim"] < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 9}, "height must be a multiple of `downsampling`, 2 pixels, got 9"),
        ({"downsampling": 3}, "`downsampling` must be 2, 4 or 8, got 3"),
        ({"codebook_size": 9000}, "`codebook_size` must be at most 8192, got 9000"),
        ({"augmentation_padding": 8}, "padding"),
        ({"augmentation": "flip"}, "`augmentation_padding` has no effect where `augmentation` is 'flip'"),
        ({"per_device_train_batch_size": 3}, "`total_batch_size` must be devices x"),
        ({"label_column": "label"}, "`label_column` has no effect"),
        ({"dataset_name": "./nothing"}, "`dataset_name` './nothing' is neither a folder"),
        ({"report_to": "nothing"}, "`report_to` must be auto, none or an installed tracker"),
        ({"output_dir": "file/out"}, "Output folder file/out can't be written to"),
    ],
)
def test_a_mistake_is_named_before_work_is_done(run, tmp_path, changes, message):
    (tmp_path / "file").write_text("")
    ended = run("train_vqvae", *flags(**changes), cwd=tmp_path)
    assert message in ended.cause and "eval_loss" not in ended.stderr


def test_other_mistakes(run, tmp_path):
    crop = ["--augmentation", "random_resized_crop"]
    assert "needs `crop_size`" in run("train_vqvae", *crop, cwd=tmp_path).cause
    assert "`streaming` must be off" in run("train_vqvae", "--streaming", cwd=tmp_path).cause
    write_images(tmp_path, 12, damaged=(3, 4, 5))
    ended = run("train_vqvae", *flags(dataset_name="images"), cwd=tmp_path)
    assert "can't be used" in ended.cause and "image-" in ended.cause
    memory = run("train_vqvae", *flags(output_dir="full"), cwd=tmp_path, fault="out of memory").cause
    assert "Out of memory with 8 images at once" in memory and "`--per_device_train_batch_size 4`" in memory
    assert "has loss nan" in run("train_vqvae", *flags(output_dir="nan"), cwd=tmp_path, fault="nan").cause


def test_help_and_the_script(run, tmp_path):
    ended = run("train_vqvae", "--help", cwd=tmp_path)
    text = " ".join(ended.stdout.split())
    assert ended.status == 0 and "hf-igpt train_vqvae " in text and "a multiple of downsampling" in text
    script = (Path(__file__).parents[2] / "scripts/train_vqvae.py").read_text()
    assert "from hf_igpt.commands.train_vqvae import main" in script


@pytest.mark.parametrize("downsampling", [2, 4, 8])
def test_the_flops_of_a_training_step_are_those_that_torch_counts(downsampling):
    config = ImageGPTVQVAEConfig(
        downsampling=downsampling, codebook_size=32, code_size=6, hidden_size=16, residual_size=5
    )
    model = ImageGPTVQVAEModel(config).train()
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(2, 3, 16, 24) * 2 - 1).loss.backward()
    # The first convolution has no gradient of its input, the images.
    first = 2 * 16 * 3 * (config.hidden_size * 2 // downsampling) * (16 * 24 // 4)
    counted = counter.get_total_flops() / 2
    assert vqvae_training_flops(config, 16, 24) - first == pytest.approx(counted, rel=1e-6)
