"""What finetune leaves, goes on from, and refuses: the command on the tiny recipe's output."""

import hashlib
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image
from tiny_recipe import write_recipe

import hf_igpt  # noqa: F401  # registers the classes that the pipeline looks for
from hf_igpt import IGPTImageProcessor, ImageGPTForImageClassification
from hf_igpt.data.token_store import load_tokens, save_tokens
from hf_igpt.storage import is_complete


MODELS = {"next_pixel": "out/model", "masked": "out-masked/model"}
SHORT = {
    "augmentation": "crop",
    "augmentation_padding": 1,
    "total_batch_size": 8,
    "max_steps": 6,
    "eval_steps": 2,
    "patience": 9,
    "logging_steps": 1,
    "learning_rate": 3e-3,
    "dropout": 0.1,
    "cpu_threads": 1,
    "report_to": "none",
}


def flags(objective: str = "next_pixel", output: str = "tuned", **changes) -> list:
    options = {"model": MODELS[objective], "output_dir": output} | SHORT | changes
    given = {name: value for name, value in options.items() if value is not None}
    return [
        item for name, value in given.items() for item in ([f"--{name}"] if value is True else [f"--{name}", value])
    ]


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model/model.safetensors")


def logged(results: dict, name: str) -> list[float]:
    return [entry[name] for entry in results["log_history"] if name in entry]


@pytest.fixture(scope="module")
def pretrained(run, tmp_path_factory) -> Path:
    """A folder with two tiny models, one of each objective, and their tokens."""
    folder = tmp_path_factory.mktemp("pretrained")
    for objective, model in MODELS.items():
        changes = {} if objective == "next_pixel" else {"objective": objective, "num_attention_heads": 1}
        write_recipe(folder, output_dir=str(Path(model).parent), max_steps=2, **changes)
        ended = run("pretrain", "tiny.yaml", cwd=folder)
        assert ended.status == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def finished(run, pretrained) -> tuple[Path, dict]:
    """That folder with a fine-tuned model in `tuned`, and its results."""
    ended = run("finetune", *flags(), cwd=pretrained)
    assert ended.status == 0, ended.stderr
    return pretrained, ended.results


def copy_of(pretrained: Path, tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("cache", "tuned*")
    return Path(shutil.copytree(pretrained, tmp_path / "work", ignore=ignored))


# What it leaves


def test_what_it_leaves(finished):
    folder, results = finished
    out = folder / "tuned"
    assert {path.name for path in out.iterdir()} >= {
        "model",
        "curve.png",
        "results.json",
        "run.json",
        "arguments.json",
    }
    assert not (out / "tokens").exists() and is_complete(out / "model")
    with Image.open(out / "curve.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 2
    assert json.loads((out / "results.json").read_text()) == results
    metrics, checkpoint = results["metrics"], results["checkpoint"]
    assert (metrics["optimizer_steps"], metrics["images_seen"], results["resumed_from"]) == (6, 48, None)
    accuracies = logged(results, "eval_accuracy")
    assert metrics["best_step"] == 2 * (1 + accuracies.index(max(accuracies))) and len(accuracies) == 3
    assert metrics["validation"]["accuracy"] == max(accuracies) and metrics["test"]["ensemble_masks"] == 1
    assert results["learning_rate"] == 3e-3 and results["wall_seconds"] > 0 and results["training_seconds"] > 0
    assert (checkpoint["name"], checkpoint["objective"], checkpoint["step"]) == ("out/model", "next_pixel", 2)
    counts = dict.fromkeys(("train", "validation", "test"), 40)
    source = results["dataset"]["source"]
    assert source["name"] == "digits"
    named = {"name": "tokens of the pretraining", "num_classes": 10, "num_images": counts}
    assert results["dataset"] == named | {"source": source}


def test_the_saved_model_is_what_was_measured(finished):
    folder, results = finished
    model = ImageGPTForImageClassification.from_pretrained(folder / "tuned/model").eval()
    split = load_tokens(folder / "out/tokens")["test"].with_format("torch")[:]
    outputs = model(split["input_ids"].long(), split["label"])
    test = results["metrics"]["test"]
    assert test["accuracy"] == (outputs.logits.argmax(-1) == split["label"]).double().mean()
    assert test["class_loss"] == pytest.approx(outputs.class_loss.item(), rel=1e-5)
    assert test["generative_loss"] == pytest.approx(outputs.generative_loss.item(), rel=1e-5)
    best = safetensors.numpy.load_file(
        folder / f"tuned/checkpoint-{results['metrics']['best_step']}" / "model.safetensors"
    )
    assert best.keys() == model.state_dict().keys() and model.score.weight.any()
    for name, weight in weights_of(folder / "tuned").items():
        np.testing.assert_array_equal(weight, best[name], err_msg=name)


def test_the_image_classification_pipeline_takes_it(finished):
    from transformers import pipeline

    folder, _ = finished
    classifier = pipeline("image-classification", model=str(folder / "tuned/model"), device="cpu")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    answers = classifier(image, top_k=10)
    assert {answer["label"] for answer in answers} == set("0123456789")
    model, processor = classifier.model, IGPTImageProcessor.from_pretrained(folder / "tuned/model")
    expected = model(**processor(image, return_tensors="pt")).logits.softmax(-1)[0]
    assert answers[0]["label"] == str(expected.argmax().item())
    assert answers[0]["score"] == pytest.approx(expected.max().item(), rel=1e-5)


# A second run


def test_a_finished_run_is_left_alone(run, finished):
    folder, results = finished
    before = digests(folder)
    again = run("finetune", *flags(save_total_limit=1, per_device_eval_batch_size=8), cwd=folder)
    assert again.status == 0 and again.results == results and "eval_loss" not in again.stderr
    other = run("finetune", *flags(seed=1, eval_steps=3, pooler_layer=0), cwd=folder)
    for difference in (
        "seed was 0 and is now 1",
        "eval_steps was 2 and is now 3",
        "pooler_layer was None and is now 0",
    ):
        assert difference in other.cause
    assert "checkpoint was" in run("finetune", *flags("masked"), cwd=folder).cause
    assert digests(folder) == before


@pytest.mark.parametrize("fault", ["kill before step 4", "kill before results"])
def test_a_killed_run_continues_to_the_same_weights(run, finished, tmp_path, fault):
    folder, results = finished
    work = copy_of(folder, tmp_path)
    assert run("finetune", *flags(), cwd=work, fault=fault).status == -9
    assert not (work / "tuned/results.json").exists()
    ended = run("finetune", *flags(), cwd=work)
    assert ended.status == 0, ended.stderr
    assert ended.results["resumed_from"] == {"4": "checkpoint-2", "s": "checkpoint-6"}[fault[-1]]
    assert ended.results["metrics"] == results["metrics"]
    assert (work / "tuned/model/model.safetensors").read_bytes() == (
        folder / "tuned/model/model.safetensors"
    ).read_bytes()
    assert logged(ended.results, "loss") == logged(results, "loss") and len(logged(results, "loss")) == 6


# Other ways to train


def test_masked_models_vote_with_masks_on(run, pretrained):
    ended = run("finetune", *flags("masked", "tuned-masked", num_masks=3, mask_rate=0.4), cwd=pretrained)
    assert ended.status == 0, ended.stderr
    metrics, test = ended.results["metrics"], ended.results["metrics"]["test"]
    assert test["ensemble_masks"] == 3 and 0 <= test["single_mask_accuracy"] <= 1
    assert 0 < test["generative_loss"] < np.log(17) * 1.1 and len(logged(ended.results, "eval_generative_loss")) == 3
    assert metrics["best_step"] in (2, 4, 6) and ended.results["arguments"]["mask_rate"] == 0.4


def test_from_scratch_on_a_few_labels(run, pretrained):
    options = {"from_scratch": True, "labels_per_class": 1, "learning_rate": None, "max_steps": 2, "seed": 1}
    ended = run("finetune", *flags(output="tuned-scratch", **options), cwd=pretrained)
    assert ended.status == 0, ended.stderr
    assert ended.results["learning_rate"] == 0.01 and ended.results["from_scratch"]
    assert ended.results["dataset"]["num_images"]["train"] == 10
    assert ended.results["metrics"]["test"]["generative_loss"] is None
    scratch, pretrained_weights = weights_of(pretrained / "tuned-scratch"), weights_of(pretrained / "out")
    between = np.corrcoef(*(weights["transformer.wpe.weight"].ravel() for weights in (scratch, pretrained_weights)))
    assert abs(between[0, 1]) < 0.5


def test_folded_validation_and_images_of_its_own(run, pretrained):
    """Stored tokens are folded, and images are tokenized with the checkpoint's palette: to the same numbers."""
    fold = {"fold_validation": True, "patience": None, "eval_steps": None, "max_steps": 2}
    stored = run("finetune", *flags(output="tuned-fold", **fold), cwd=pretrained)
    assert stored.status == 0, stored.stderr
    assert stored.results["metrics"]["validation"] is None and logged(stored.results, "eval_loss") == []
    assert stored.results["dataset"]["num_images"] == {"train": 80, "test": 40}
    images = {"dataset_name": "digits", "max_images": 40, "max_steps": 2}
    ended = run("finetune", *flags(output="tuned-images", **images), cwd=pretrained)
    assert ended.status == 0, ended.stderr
    own, beside = (load_tokens(pretrained / name / "tokens") for name in ("tuned-images", "out"))
    for split in beside:
        assert own[split]["input_ids"] == beside[split]["input_ids"] and own[split]["label"] == beside[split]["label"]
    assert ended.results["dataset"]["name"] == "digits" and ended.results["dataset"]["num_images"]["test"] == 40


def test_two_processes_compute_what_one_does(run, pretrained, tmp_path):
    work = copy_of(pretrained, tmp_path)
    options = {"dropout": 0, "max_steps": 4, "per_device_eval_batch_size": 7, "num_masks": 3}
    two = run.on_two_processes("finetune", *flags("masked", "two", **options), cwd=work).results
    one = run("finetune", *flags("masked", "one", **options), cwd=work).results
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in ("loss", "eval_loss", "eval_class_loss", "eval_generative_loss", "eval_accuracy"):
        assert logged(two, name) == pytest.approx(logged(one, name), rel=1e-5) and logged(one, name), name
    for split in ("validation", "test"):
        assert two["metrics"][split] == pytest.approx(one["metrics"][split], rel=1e-5)


# What it refuses


def with_labels(tokens: datasets.DatasetDict, split: str, labels) -> datasets.DatasetDict:
    changed = {}
    for name, rows in tokens.items():
        description, values = rows.info.description, list(rows["label"])
        if name == split:
            values = labels(values)
        rows = rows.remove_columns("label")
        rows = rows if values is None else rows.add_column("label", values)
        rows.info.description = description
        changed[name] = rows
    return datasets.DatasetDict(changed)


@pytest.mark.parametrize(
    ("split", "labels", "message"),
    [
        ("train", lambda labels: None, "The split 'train' has no labels"),
        ("train", lambda labels: [*labels[:5], -1, *labels[6:]], "row 5 of split 'train' must be from 0 to"),
        ("test", lambda labels: [*labels[:7], 99, *labels[8:]], "row 7 of split 'test' must be from 0 to 9, got 99"),
        ("validation", lambda labels: [None, *labels[1:]], "row 0 of split 'validation' is missing"),
    ],
)
def test_labels_that_cannot_be(run, pretrained, tmp_path, split, labels, message):
    work = copy_of(pretrained, tmp_path)
    save_tokens(with_labels(load_tokens(work / "out/tokens"), split, labels), work / "other")
    assert message in run("finetune", *flags(tokens="other"), cwd=work).cause
    assert not (work / "tuned").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "out/nothing"}, "out/nothing is no checkpoint folder"),
        ({"num_masks": 4}, "`num_masks` has no effect: out/model is a next-pixel model"),
        ({"max_images": 4}, "`max_images` has no effect without `dataset_name`"),
        (
            {"dataset_name": "digits", "tokens": "out/tokens"},
            "`tokens` has no effect where `dataset_name` is 'digits'",
        ),
        ({"labels_per_class": 30}, "A subset of 30 images of every class was asked for"),
        ({"labels_per_class": 3, "max_train_images": 9}, "`labels_per_class` has no effect where `max_train_images`"),
        ({"patience": 3, "fold_validation": True}, "`patience` has no effect where `fold_validation` is True"),
        ({"output_dir": "out"}, "out belongs to another run"),
        ({"tokens": "nothing"}, "There are no tokens in nothing"),
    ],
)
def test_options_that_cannot_be(run, finished, options, message):
    folder, _ = finished
    before = digests(folder)
    assert message in run("finetune", *flags(**({"output_dir": "tuned-wrong"} | options)), cwd=folder).cause
    assert digests(folder) == before


def test_checkpoints_that_cannot_be(run, pretrained, tmp_path):
    work = copy_of(pretrained, tmp_path)
    own = IGPTImageProcessor.from_pretrained(work / "out/model")
    tokens = load_tokens(work / "out/tokens")
    for split in tokens.values():
        split.info.description = split.info.description.replace(own.token_hash, "another")
    save_tokens(tokens, work / "other")
    cause = run("finetune", *flags(tokens="other"), cwd=work).cause
    assert "`token_hash` of the tokens is another" in cause and own.token_hash in cause
    (work / "out/model/manifest.json").unlink()
    (work / "out/model/training_args.json").unlink()
    cause = run("finetune", *flags(learning_rate=None), cwd=work).cause
    assert "out/model does not say at which learning rate it was pretrained" in cause and "--learning_rate" in cause
    (work / "out/model/preprocessor_config.json").unlink()
    assert "out/model: the image processor, without which" in run("finetune", *flags(), cwd=work).cause
    assert not (work / "tuned").exists()


def test_other_weights_under_the_same_name_are_another_run(run, finished, tmp_path):
    folder, _ = finished
    work = Path(shutil.copytree(folder, tmp_path / "work", ignore=shutil.ignore_patterns("cache", "tuned-*")))
    (work / "out/model/manifest.json").unlink()
    weights = safetensors.numpy.load_file(work / "out/model/model.safetensors")
    weights["transformer.wpe.weight"][0, 0] += 1
    safetensors.numpy.save_file(weights, work / "out/model/model.safetensors", metadata={"format": "pt"})
    assert "tuned belongs to another run: checkpoint was" in run("finetune", *flags(), cwd=work).cause


def test_help_and_the_script(run, tmp_path):
    ended = run("finetune", "--help", cwd=tmp_path)
    text = " ".join(ended.stdout.split())
    assert ended.status == 0 and "a tenth of the pretraining's" in text and "in pixels" in text
    script = (Path(__file__).parents[2] / "scripts/finetune.py").read_text()
    assert "from hf_igpt.commands.finetune import main" in script and '# dependencies = ["hf-igpt[' in script
    assert torch.get_num_threads() == 1
