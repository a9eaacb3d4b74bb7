"""What each command leaves, and how it ends: streams, exit codes, a second run."""

import hashlib
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image
from tiny_recipe import make_pixels, write_images, write_recipe

from hf_igpt import AutoModelForCausalImageModeling, IGPTImageProcessor
from hf_igpt.commands.main import COMMANDS, main
from hf_igpt.data.token_store import load_tokens
from hf_igpt.evaluation import cell_sizes
from hf_igpt.storage import is_complete, list_checkpoints
from hf_igpt.training.objectives import model_class
from hf_igpt.weights import load_verified, weights_digest


ROOT = Path(__file__).parents[2]
AWKWARD = "run [1] (ü) 像 素"
SCRIPTS = [command for command in COMMANDS if command != "env"]


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def logged(results: dict, name: str) -> list[float]:
    return [entry[name] for entry in results["log_history"] if name in entry]


def copy_of(finished: Path, tmp_path: Path) -> Path:
    """A folder with a finished run in it, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "work"))


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory) -> Path:
    """A folder with the tiny recipe, its finished output in `out`, and the last line it printed in `stdout`."""
    folder = tmp_path_factory.mktemp("finished")
    write_recipe(folder, sample_steps=5, report_to="tensorboard")
    ended = run("pretrain", "tiny.yaml", cwd=folder)
    assert ended.status == 0, ended.stderr
    (folder / "stdout").write_text(ended.stdout.splitlines()[-1] + "\n")
    return folder


# What pretrain leaves


def test_pretrain_leaves_every_stage(finished):
    out = finished / "out"
    assert {path.name for path in out.iterdir() if path.name != ".lock"} == {
        *("palette", "tokens", "checkpoint-4", "checkpoint-6", "model", "samples", "runs"),
        *("run.json", "arguments.json", "results.json", "loss.png"),
    }
    assert all(is_complete(out / name) for name in ("palette", "tokens", "checkpoint-4", "checkpoint-6", "model"))
    for name in ("palette/palette.png", "palette/quantization.png", "samples/step-5.png", "loss.png"):
        with Image.open(out / name) as picture:
            assert picture.format == "PNG" and len(picture.convert("RGB").getcolors(10**6)) > 2, name
    events = b"".join(path.read_bytes() for path in (out / "runs").rglob("events*"))
    assert b"samples" in events and b"tokens_per_second" in events


def test_results_are_the_last_line_and_add_up(finished):
    results = json.loads((finished / "out" / "results.json").read_text())
    assert json.loads((finished / "stdout").read_text()) == results
    assert results["command"] == "hf-igpt pretrain tiny.yaml" and results["processes"] == 1
    metrics, validation = results["metrics"], results["metrics"]["validation"]
    assert (metrics["optimizer_steps"], metrics["images_seen"]) == (6, 48)
    weights = safetensors.numpy.load_file(finished / "out/model/model.safetensors")
    assert metrics["parameters"] == sum(weight.size for weight in weights.values())
    evaluations = logged(results, "eval_loss")
    assert len(evaluations) == 2 and validation["nats_per_token"] == pytest.approx(evaluations[-1], rel=1e-5)
    assert validation["nats_per_token"] < validation["uniform_nats_per_token"] == math.log(17)
    assert validation["bits_per_pixel"] == pytest.approx(validation["nats_per_token"] / math.log(2))
    assert results["arguments"]["learning_rate"] == 0.01


def test_auto_classes_load_the_model_folder(finished):
    from transformers import AutoImageProcessor, AutoModel

    folder = finished / "out/model"
    model, processor = (
        AutoModelForCausalImageModeling.from_pretrained(folder),
        AutoImageProcessor.from_pretrained(folder),
    )
    tokens = load_tokens(finished / "out/tokens")["validation"].with_format("torch")[:4]["input_ids"].long()
    loss = model.eval()(labels=tokens).loss
    assert 1 < loss < math.log(17)
    backbone = AutoModel.from_pretrained(folder).eval()
    torch.testing.assert_close(backbone.wte.weight, model.transformer.wte.weight)
    images = processor.decode(tokens)
    assert processor.num_colors == 17
    assert torch.equal(processor(images, return_tensors="pt")["input_ids"], tokens)


# A second run


def test_a_finished_run_is_left_alone(run, finished):
    before = digests(finished)
    again = run("pretrain", "tiny.yaml", cwd=finished)
    assert again.status == 0 and again.stdout == (finished / "stdout").read_text()
    # What may change without changing a number doesn't make it another run.
    assert run("pretrain", "tiny.yaml", "--logging_steps", 3, "--save_steps", 3, cwd=finished).status == 0
    assert digests(finished) == before


def test_accelerate_launch_and_the_console_script(tmp_path, monkeypatch, capfd):
    """The script as a user launches it, on two processes, and a mistake that the console script's child finds."""
    write_recipe(tmp_path, output_dir=f"'{AWKWARD}'", max_steps=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--config_file"]
    script += [ROOT / "recipes/accelerate/ddp.yaml", ROOT / "scripts/pretrain.py"]
    with (
        open("out.txt", "w") as output,
        open("err.txt", "w") as errors,
        subprocess.Popen([*script, "tiny.yaml"], stdout=output, stderr=errors) as launched,
    ):
        with pytest.raises(SystemExit, match="1"):
            main(["pretrain", "tiny.yaml", "--output_dir", "tiny.yaml/out"])
        assert launched.wait(timeout=200) == 0, Path("err.txt").read_text()
    results = json.loads(Path("out.txt").read_text().splitlines()[-1])
    assert results == json.loads((tmp_path / AWKWARD / "results.json").read_text())
    assert (results["metrics"]["optimizer_steps"], results["processes"]) == (2, 2)
    assert is_complete(tmp_path / AWKWARD / "model")
    streams = capfd.readouterr()
    assert streams.err.splitlines()[-1].startswith("error: Output folder tiny.yaml/out can't be written to")
    assert "Traceback" not in streams.err and streams.out == ""


# Kills


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_with_workers_killed_in_its_second_epoch_continues_to_the_same_weights(run, tmp_path, optimizer):
    """Dropout draws from the generator that the data loader's workers are seeded from."""
    write_recipe(tmp_path, dataloader_num_workers=2, max_steps=9, save_steps=6, optimizer=optimizer)
    whole = run("pretrain", "tiny.yaml", "--output_dir", "whole", cwd=tmp_path)
    assert run("pretrain", "tiny.yaml", cwd=tmp_path, fault="kill before step 8").status == -9
    ended = run("pretrain", "tiny.yaml", cwd=tmp_path)
    assert (whole.results["resumed_from"], ended.results["resumed_from"]) == (None, "checkpoint-6")
    assert whole.results["metrics"] == ended.results["metrics"]
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("whole", "out")]
    assert weights[0] == weights[1]
    assert ended.results["training_seconds"] > 0


@pytest.mark.parametrize(
    "moments",
    [
        ("after palette", "after tokens", "before step 2"),
        ("before step 4",),
        ("before model", "after model", "before results"),
    ],
)
def test_a_killed_run_continues_to_the_same_weights(run, finished, tmp_path, moments):
    write_recipe(tmp_path)
    made = {}
    for moment in moments:
        assert run("pretrain", "tiny.yaml", cwd=tmp_path, fault=f"kill {moment}").status == -9
        assert not (tmp_path / "out/results.json").exists()
        for name in ("palette", "tokens"):
            if (tmp_path / "out" / name).exists():
                assert made.setdefault(name, digests(tmp_path / "out" / name)) == digests(tmp_path / "out" / name)
    ended = run("pretrain", "tiny.yaml", cwd=tmp_path)
    assert ended.status == 0, ended.stderr
    for name in ("model/model.safetensors", "checkpoint-6/optimizer.pt", "tokens/train/data-00000-of-00001.arrow"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / "out" / name).read_bytes(), name
    whole = json.loads((finished / "stdout").read_text())
    assert ended.results["metrics"] == whole["metrics"]
    assert logged(ended.results, "loss") == logged(whole, "loss") and len(logged(whole, "loss")) == 6
    hidden = [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    assert hidden == [".lock"]


def test_damaged_stages_are_made_again(run, finished, tmp_path):
    work = copy_of(finished, tmp_path)
    weights = work / "out/model/model.safetensors"
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-4] + b"\0\0\0\0")
    (work / "out/tokens/test/data-00000-of-00001.arrow").unlink()
    ended = run("pretrain", "tiny.yaml", cwd=work)
    assert ended.status == 0, ended.stderr
    assert "data-00000-of-00001.arrow" in ended.stderr and "model.safetensors" in ended.stderr
    assert weights.read_bytes() == intact and is_complete(work / "out/tokens")


# Folders of other runs


def test_a_folder_of_another_run_is_refused(run, finished):
    before = digests(finished)
    ended = run("pretrain", "tiny.yaml", "--learning_rate", "5e-3", "--seed", 1, cwd=finished)
    assert "out belongs to another run" in ended.cause
    assert "learning_rate was 0.01 and is now 0.005" in ended.cause and "seed was 0 and is now 1" in ended.cause
    ended = run("pretrain", "tiny.yaml", "--output_dir", "out/tokens", cwd=finished)
    assert "out/tokens holds" in ended.cause
    other = ["--num_colors", 5, "--image_size", 8, "--max_images", 40, "--output_dir", "out/palette"]
    assert "num_colors was 17 and is now 5" in run("fit_palette", *other, cwd=finished).cause
    assert digests(finished) == before


def test_two_runs_started_together(run, tmp_path):
    write_recipe(tmp_path)
    first = run.start("pretrain", "tiny.yaml", cwd=tmp_path, fault="hold")
    deadline = time.monotonic() + 60
    while not (tmp_path / "held").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = digests(tmp_path / "out")
    run_id = json.loads((tmp_path / "out/run.json").read_text())["run_id"]
    second = run("pretrain", "tiny.yaml", cwd=tmp_path)
    assert f"out is in use by run {run_id}" in second.cause
    other = run("pretrain", "tiny.yaml", "--seed", 5, cwd=tmp_path)
    assert "out belongs to another run: seed was 0 and is now 5" in other.cause
    assert digests(tmp_path / "out") == before
    (tmp_path / "release").touch()
    assert run.wait(first).status == 0


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (lambda text: text[: len(text) // 2], "results.json can't be read as JSON"),
        (
            lambda text: text.replace('"schema_version": 1', '"schema_version": 99'),
            "`schema_version` in out/results.json",
        ),
        (lambda text: text.replace('"metrics"', '"numbers"'), "lacks the field `metrics`"),
    ],
)
def test_damaged_results_are_refused(run, finished, tmp_path, damage, pattern):
    work = copy_of(finished, tmp_path)
    file = work / "out/results.json"
    file.write_text(damage(file.read_text()))
    before = digests(work)
    assert pattern in run("pretrain", "tiny.yaml", cwd=work).cause
    assert digests(work) == before


# Evaluate and sample


def test_evaluate_scores_the_test_split(run, finished, tmp_path):
    work = copy_of(finished, tmp_path)
    ended = run("evaluate", "--model", "out/model", "--cpu_threads", 1, cwd=work)
    assert ended.status == 0, ended.stderr
    nats = np.load(work / "out/evaluation-test/nats_per_image.npy", allow_pickle=False)
    metrics = ended.results["metrics"]
    assert nats.shape == (40,) and metrics["nats_per_token"] == pytest.approx(nats.mean() / 64)
    tokens = load_tokens(work / "out/tokens")["test"].with_format("torch")[:]["input_ids"].long()
    model = AutoModelForCausalImageModeling.from_pretrained(work / "out/model").eval()
    assert metrics["nats_per_token"] == pytest.approx(model(labels=tokens).loss.item(), rel=1e-5)
    before = digests(work)
    again = run("evaluate", "--model", "out/model", "--cpu_threads", 1, cwd=work)
    assert again.status == 0 and again.stdout == ended.stdout and digests(work) == before
    assert "validation" in run("evaluate", "--model", "out/model", "--split", "nothing", cwd=work).cause


def test_evaluate_counts_the_colours(run, finished, tmp_path):
    """Digits are 17 greys and have 17 colours here: each cell holds one that occurs, as the images of train tell."""
    work = copy_of(finished, tmp_path)
    arguments = ["--model", "out/model", "--cpu_threads", 1]
    uniform = run("evaluate", *arguments, cwd=work).results["metrics"]
    of_tokens = uniform["nats_per_token"] / 3 / math.log(2)
    assert uniform["bits_per_dim"] == pytest.approx(of_tokens + uniform["bits_per_dim_of_colors"], rel=1e-9)
    tokens = load_tokens(work / "out/tokens")["test"].with_format("numpy")[:]["input_ids"]
    bits = np.log2(cell_sizes(IGPTImageProcessor.from_pretrained(work / "out/model").palette))[tokens]
    assert uniform["color_density"] == "uniform"
    assert uniform["bits_per_dim_of_colors"] == pytest.approx(bits.mean() / 3, rel=1e-9)

    ended = run("evaluate", *arguments, "--color_density", "empirical", cwd=work)
    assert ended.status == 0, ended.stderr
    empirical = ended.results["metrics"]
    assert empirical["nats_per_token"] == uniform["nats_per_token"]
    assert (empirical["color_density"], empirical["color_smoothing_from"]) == ("empirical", "validation")
    assert empirical["bits_per_dim_of_colors"] < 0.01 < 4 < uniform["bits_per_dim_of_colors"]
    nats = np.load(work / "out/evaluation-test-empirical/color_nats_per_image.npy", allow_pickle=False)
    assert nats.mean() / 64 / 3 / math.log(2) == pytest.approx(empirical["bits_per_dim_of_colors"], rel=1e-9)
    together = ["--color_density", "empirical", "--output_dir", "both"]
    both = run.on_two_processes("evaluate", *arguments, *together, cwd=work).results["metrics"]
    assert both["bits_per_dim"] == pytest.approx(empirical["bits_per_dim"], rel=1e-6)
    given = ["--color_density", "empirical", "--color_smoothing", 0.25, "--output_dir", "given"]
    smooth = run("evaluate", *arguments, *given, cwd=work).results["metrics"]
    assert (smooth["color_smoothing"], smooth["color_smoothing_from"]) == (0.25, "given")
    assert smooth["bits_per_dim"] > empirical["bits_per_dim"]
    write_images(work, 60)
    others = ["--color_density", "empirical", "--output_dir", "others", "--dataset_name", "images"]
    cause = run("evaluate", *arguments, *others, cwd=work).cause
    assert "`dataset_name` names are needed again" in cause or "is not what the tokens were made of" in cause
    assert not (work / "others").exists()


def test_sample_draws_grids(run, finished, tmp_path):
    work = copy_of(finished, tmp_path)
    arguments = ["--model", "out/model", "--num_samples", 4, "--num_completions", 2, "--completions_per_image", 1]
    arguments += ["--rows_kept", 7, "--cpu_threads", 1]
    ended = run("sample", *arguments, cwd=work)
    assert ended.status == 0, ended.stderr
    folder = work / "out/samples-final"
    with Image.open(folder / "samples.png") as samples, Image.open(folder / "completions.png") as completions:
        assert samples.size == (4 + 2 * 100, 4 + 2 * 100)
        given, completion, original = (
            np.asarray(completions)[22 : 22 + 96, left : left + 96] for left in (4, 104, 204)
        )
    np.testing.assert_array_equal(given[:84], original[:84])
    np.testing.assert_array_equal(completion[:84], original[:84])
    assert (given[84:] == (225, 225, 230)).all()
    before = digests(work)
    again = run("sample", *arguments, cwd=work)
    assert again.status == 0 and again.stdout == ended.stdout and digests(work) == before
    assert "temperature was 1.0 and is now 0.5" in run("sample", *arguments, "--temperature", 0.5, cwd=work).cause


def test_palettes_that_disagree_are_refused(run, finished, tmp_path):
    work = copy_of(finished, tmp_path)
    own = IGPTImageProcessor.from_pretrained(work / "out/model")
    other = IGPTImageProcessor(size=own.size, palette=own.palette[::-1])
    other.save_pretrained(work / "other")
    tokenized = run("tokenize_dataset", "--palette", "other", "--max_images", 10, "--output_dir", "tokens", cwd=work)
    assert tokenized.status == 0 and tokenized.results["metrics"]["num_images"]["test"] == 10
    for command in ("evaluate", "sample"):
        cause = run(command, "--model", "out/model", "--tokens", "tokens", cwd=work).cause
        assert "`token_hash`" in cause and own.token_hash in cause and other.token_hash in cause
    shutil.copy(work / "other/preprocessor_config.json", work / "out/model")
    assert "preprocessor_config.json in out/model has" in run("evaluate", "--model", "out/model", cwd=work).cause
    (work / "out/model/manifest.json").unlink()
    assert other.token_hash in run("evaluate", "--model", "out/model", cwd=work).cause
    IGPTImageProcessor(size=own.size, palette=own.palette[:5]).save_pretrained(work / "out/model")
    assert (
        "the image processor makes palette tokens of 5 values" in run("sample", "--model", "out/model", cwd=work).cause
    )


# Images that a user brings


def test_a_damaged_image_is_named_or_skipped(run, tmp_path):
    write_images(tmp_path, 24, damaged=[3, 17])
    write_recipe(tmp_path, dataset_name="images", num_colors=6, max_steps=2, max_images="null")
    assert "of the split 'train', file image-3.png can't be used" in run("pretrain", "tiny.yaml", cwd=tmp_path).cause
    assert "image-3.png" in run("fit_palette", "--dataset_name", "images", "--image_size", 8, cwd=tmp_path).cause
    shutil.rmtree(tmp_path / "out")
    ended = run("pretrain", "tiny.yaml", "--skip_damaged", cwd=tmp_path)
    assert ended.status == 0, ended.stderr
    tokenized = json.loads((tmp_path / "out/tokens/results.json").read_text())["metrics"]
    assert {row["file"] for row in tokenized["skipped"]} == {"image-3.png", "image-17.png"}
    assert sum(tokenized["num_images"].values()) == 22
    assert "image-17.png" in ended.stderr
    assert {row["file"] for row in ended.results["skipped"]} == {"image-3.png", "image-17.png"}


def test_a_stream_is_tokenized_without_keeping_images(run, tmp_path):
    write_images(tmp_path, 40, damaged=[5])
    changes = {"dataset_name": "images", "num_colors": 6, "max_steps": 2, "streaming": True, "skip_damaged": True}
    write_recipe(tmp_path, **changes, max_images="null")
    ended = run("pretrain", "tiny.yaml", cwd=tmp_path)
    assert ended.status == 0, ended.stderr
    tokens = load_tokens(tmp_path / "out/tokens")
    processor = IGPTImageProcessor.from_pretrained(tmp_path / "out/model")
    pixels = np.delete(make_pixels(40), 5, axis=0).astype(float)
    nearest = ((pixels[:, :, :, None] - processor.palette) ** 2).sum(-1).argmin(-1).reshape(39, 64)
    stored = [row for split in tokens.values() for row in split["input_ids"]]
    assert sorted(map(tuple, stored)) == sorted(map(tuple, nearest.tolist()))
    assert len(tokens["validation"]) > 0
    assert [row["file"] for row in ended.results["skipped"]] == ["image-5.png"]
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*.arrow"))
    assert b"\x89PNG" not in written
    before = digests(tmp_path / "out")
    again = ["--palette", "out/palette", "--dataset_name", "images", "--streaming", "--skip_damaged"]
    for status, fraction in ((0, 0.1), (0, 0.1), (1, 0.3)):
        arguments = [*again, "--output_dir", "tokens", "--validation_fraction", fraction]
        assert run("tokenize_dataset", *arguments, cwd=tmp_path).status == status
    assert digests(tmp_path / "out") == before


def test_images_in_few_numbers(run, tmp_path):
    write_recipe(tmp_path, max_images=1, num_colors=5, max_steps=2)
    ended = run("pretrain", "tiny.yaml", cwd=tmp_path)
    assert ended.status == 0, ended.stderr
    metrics = ended.results["metrics"]
    assert metrics["images_seen"] == 16 and metrics["validation"]["num_images"] == 1
    assert metrics["validation"]["nats_per_token_standard_error"] is None
    write_images(tmp_path, 1)
    cause = run("pretrain", "tiny.yaml", "--dataset_name", "images", "--output_dir", "one", cwd=tmp_path).cause
    assert "`validation_fraction` 0.1 of 1 images leaves no image for validation" in cause


def test_a_folder_without_images(run, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/train.csv").write_text("name,number\na,1\nb,2\n")
    write_recipe(tmp_path, dataset_name="texts")
    cause = run("pretrain", "tiny.yaml", cwd=tmp_path).cause
    assert "`image_column`" in cause and "Columns: name (" in cause and "number (int64)" in cause


# Training that has to stop


def test_out_of_memory_names_the_flag(run, tmp_path):
    write_recipe(tmp_path)
    ended = run("pretrain", "tiny.yaml", cwd=tmp_path, fault="out of memory")
    assert "--per_device_train_batch_size 4" in ended.cause and "CUDA out of memory" in ended.cause
    assert [step for step, _ in list_checkpoints(tmp_path / "out")] == [2]
    ended = run("pretrain", "tiny.yaml", "--per_device_train_batch_size", 4, cwd=tmp_path)
    assert ended.status == 0 and ended.results["metrics"]["images_seen"] == 48, ended.stderr


def test_a_loss_that_is_nan_stops(run, tmp_path):
    write_recipe(tmp_path)
    ended = run("pretrain", "tiny.yaml", cwd=tmp_path, fault="nan")
    cause = ended.cause
    assert "loss" in ended.stdout and "nan" not in ended.stdout
    assert "Step 4 has loss nan" in cause and "Lower the learning rate" in cause
    assert [step for step, _ in list_checkpoints(tmp_path / "out")] == [2]
    assert is_complete(tmp_path / "out/checkpoint-2")
    assert not (tmp_path / "out/model").exists() and not (tmp_path / "out/results.json").exists()


# Mistakes, found before work is done


MISTAKES = {
    "pretrain": [
        (["nothing"], "No recipe 'nothing': give a path, or one of cifar10, cifar10-best, "),
        (["tiny.yaml", "--attn_implementation", "flash_attention_2"], "trains on a GPU only, and there is none"),
        (["tiny.yaml", "--attn_implementation", "flex_attention"], "trains on a GPU only, and there is none"),
        (["tiny.yaml", "--augmentation", "random_resized_crop"], "needs `crop_size`"),
        (["tiny.yaml", "--matrix_learning_rate", "0.1"], "`matrix_learning_rate` has no effect where `optimizer` is"),
        (["tiny.yaml", "--mask_rate", "0.2"], "`mask_rate` has no effect where `objective` is 'next_pixel'"),
        (
            ["tiny.yaml", "--objective", "masked", "--mask_rate", "often"],
            "`mask_rate` must be a number or one of uniform, got 'often'",
        ),
        (
            ["tiny.yaml", "--learning_rate", "fast", "--seed", "-1"],
            "`learning_rate` must be a number, got 'fast'; `seed` must be at least 0, got -1",
        ),
        (["tiny.yaml", "--per_device_train_batch_size", "3"], "`total_batch_size` must be devices x"),
        (["tiny.yaml", "--num_attention_heads", "3"], "num_attention_heads"),
        (["tiny.yaml", "--augmentation_padding", "8"], "padding"),
        (["tiny.yaml", "--image_size", "8", "8", "8"], "`image_size` must be one side, or height and width"),
        (["tiny.yaml", "--report_to", "nothing"], "`report_to` must be auto, none or an installed tracker"),
        (["tiny.yaml", "--augmentation", "random_resized_crop", "--skip_damaged"], "`skip_damaged` must be off"),
        (["tiny.yaml", "--dataset_name", "./nothing"], "`dataset_name` './nothing' is neither a folder"),
        (["tiny.yaml", "--palette", "./nothing"], "./nothing"),
        (["tiny.yaml", "--output_dir", "tiny.yaml/out"], "Output folder tiny.yaml/out can't be written to"),
    ],
    "evaluate": [
        (["--model", "./nothing"], "./nothing"),
        (["--model", "out/nothing"], "out/nothing is no checkpoint folder, and no model on the Hub"),
        (["--model", "out/model", "--num_masks", "4"], "`num_masks` has no effect: out/model is a next-pixel model"),
        (["--model", "out/model", "--color_smoothing", "1"], "`color_smoothing` has no effect where `color_density`"),
        (
            ["--model", "out/model", "--color_density", "empirical", "--dataset_name", "./nothing"],
            "The images that `dataset_name` names are needed again: `dataset_name` './nothing' is neither a folder",
        ),
        (["--model", "out/model", "--tokens", "nothing"], "There are no tokens in nothing"),
        (["--model", "out/model", "--output_dir", "tiny.yaml/out"], "can't be written to"),
    ],
    "sample": [
        (["--model", "./nothing"], "./nothing"),
        (["--model", "out/model", "--rows_kept", "8"], "`rows_kept` must be from 0 to 7"),
        (["--model", "out/model", "--device", "mps"], "`device` 'mps' is not there: this machine has cpu"),
        (["--model", "out/model", "--num_samples", "0", "--num_completions", "0"], "there is nothing to draw"),
        (["--model", "out/model", "--tokens", "nothing"], "There are no tokens in nothing"),
        (["--model", "out/model", "--split", "nothing"], "There is no split 'nothing', only train, test, validation"),
    ],
    "tokenize_dataset": [(["--palette", "./nothing"], "./nothing")],
    "fit_palette": [
        (["--image_size", "8", "8", "8"], "`image_size`"),
        (["--num_colors", "1"], "`num_colors` must be"),
    ],
}


@pytest.mark.parametrize(
    ("command", "arguments", "pattern"),
    [(command, *mistake) for command, mistakes in MISTAKES.items() for mistake in mistakes],
)
def test_a_mistake_is_named_before_work_is_done(run, finished, tmp_path, command, arguments, pattern):
    if command in ("evaluate", "sample"):
        shutil.copytree(finished / "out", tmp_path / "out")
    write_recipe(tmp_path)
    before = digests(tmp_path)
    ended = run(command, *arguments, cwd=tmp_path)
    assert pattern in ended.cause
    assert not any(word in ended.stderr for word in ("Tokenizing", "Scoring", "Sampling", "Completing"))
    left = {name for name in digests(tmp_path) if not name.startswith("cache/")} - before.keys()
    assert left <= {"out/run.json", "out/arguments.json", "out/.lock"}


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("pretrain", "accelerate", "train"),
        ("pretrain", "datasets", "train"),
        ("pretrain", "matplotlib", "train"),
        ("pretrain", "sklearn", "train"),
        ("pretrain", "yaml", "train"),
        ("pretrain", "tensorboard", "tracking"),
        ("evaluate", "accelerate", "train"),
        ("sample", "datasets", "train"),
    ],
)
def test_a_missing_package_is_named_before_work_is_done(run, finished, tmp_path, command, package, extra):
    write_recipe(tmp_path, report_to="tensorboard")
    arguments = ["tiny.yaml"] if command == "pretrain" else ["--model", finished / "out/model"]
    ended = run(command, *arguments, cwd=tmp_path, fault=f"missing {package}")
    assert package in ended.cause and f"pip install 'hf-igpt[{extra}]'" in ended.cause
    assert not (tmp_path / "out/palette").exists()
    assert not any(word in ended.stderr for word in ("Tokenizing", "Scoring", "Sampling"))


# Two processes


@pytest.mark.parametrize(
    ("options", "score"),
    [
        ({}, "nats_per_token"),
        ({"objective": "masked"}, "masked_nats_per_token"),
        ({"optimizer": "muon"}, "nats_per_token"),
    ],
)
def test_two_processes_compute_what_one_does(run, tmp_path, options, score):
    write_recipe(tmp_path, dropout=0, max_steps=4, weight_decay=0.01, **options)

    def both(*arguments):
        return run.on_two_processes(*arguments, cwd=tmp_path).results

    one = run("pretrain", "tiny.yaml", "--output_dir", "one", cwd=tmp_path).results
    two = both("pretrain", "tiny.yaml", "--output_dir", "two")
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in (score, "unigram_nats_per_token"):
        assert two["metrics"]["validation"][name] == pytest.approx(one["metrics"]["validation"][name], rel=1e-6)
    for name in ("loss", "grad_norm"):
        assert logged(two, name) == pytest.approx(logged(one, name), rel=1e-5) and len(logged(one, name)) == 4
    assert logged(two, "eval_loss") == pytest.approx(logged(one, "eval_loss"), rel=1e-6) and logged(one, "eval_loss")
    weights = [safetensors.numpy.load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two")]
    for name, weight in weights[0].items():
        np.testing.assert_allclose(weights[1][name], weight, rtol=0, atol=2e-5, err_msg=name)
    alone = run("evaluate", "--model", "two/model", "--output_dir", "alone", "--cpu_threads", 1, cwd=tmp_path).results
    together = both("evaluate", "--model", "two/model", "--output_dir", "both", "--batch_size", 7)
    nats = [np.load(tmp_path / name / "nats_per_image.npy", allow_pickle=False) for name in ("alone", "both")]
    np.testing.assert_allclose(nats[0], nats[1], rtol=1e-6)
    assert alone["metrics"]["num_images"] == together["metrics"]["num_images"] == 40


@pytest.mark.parametrize("objective", ["next_pixel", "masked"])
def test_shards_of_a_model_give_what_a_whole_one_does(run, tmp_path, objective):
    """FSDP2 through every stage: validation of shares that are not equal, pictures of samples, the finished model."""
    write_recipe(tmp_path, dropout=0, max_steps=4, sample_steps=4, max_images=39, objective=objective)
    one = run("pretrain", "tiny.yaml", "--output_dir", "one", cwd=tmp_path).results
    arguments = ("pretrain", "tiny.yaml", "--output_dir", "two", "--per_device_eval_batch_size", 2)
    two = run.on_two_processes(*arguments, cwd=tmp_path, fault="none, but shards").results
    assert (one["processes"], two["processes"]) == (1, 2)
    assert logged(two, "loss") == pytest.approx(logged(one, "loss"), rel=1e-5) and len(logged(one, "loss")) == 4
    assert logged(two, "eval_loss") == pytest.approx(logged(one, "eval_loss"), rel=1e-6) and logged(one, "eval_loss")
    for name, value in one["metrics"]["validation"].items():
        assert two["metrics"]["validation"][name] == pytest.approx(value, rel=1e-5), name
    assert two["metrics"]["parameters"] == one["metrics"]["parameters"]
    pictures = [np.asarray(Image.open(tmp_path / name / "samples/step-4.png")) for name in ("one", "two")]
    assert pictures[0].shape == pictures[1].shape
    model, _ = load_verified(tmp_path / "two/model", model_class)
    assert weights_digest(model) == two["model_sha256"]


# Help


@pytest.mark.parametrize("command", SCRIPTS)
def test_help_states_defaults_and_units(run, tmp_path, command):
    ended = run(command, "--help", cwd=tmp_path)
    assert ended.status == 0
    text = " ".join(ended.stdout.split())
    assert f"hf-igpt {command} " in text and "default" in text
    units = {
        "pretrain": ("optimizer steps between checkpoints", "in pixels", "images at once", "passes over", "in epochs"),
        "fit_palette": ("colours of the palette", "in pixels"),
        "tokenize_dataset": ("processes", "share of train"),
        "evaluate": ("images at once", "nats per token"),
        "sample": ("images to draw", "rows"),
    }
    assert [unit for unit in units.get(command, ()) if unit not in text] == []
    script = (ROOT / "scripts" / f"{command}.py").read_text()
    assert f"from hf_igpt.commands.{command} import main" in script and '# dependencies = ["hf-igpt[' in script


def test_the_console_script_lists_the_commands(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    assert [command for command in COMMANDS if command not in text] == []
    with pytest.raises(SystemExit, match="2"):
        main(["pretrian"])
    assert "unknown command 'pretrian'" in capsys.readouterr().err
