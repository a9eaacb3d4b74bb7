import json

import datasets
import numpy as np
import pytest
from PIL import Image
from tiny_recipe import write_recipe

from hf_igpt.storage import verify_folder


MODEL = "out/model"
FAST = ("--penalties", "0.01", "1")


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """A folder with two runs of tiny recipes: next-pixel with three checkpoints, masked."""
    folder = tmp_path_factory.mktemp("probe")
    write_recipe(folder, save_total_limit=3)
    assert run("pretrain", "tiny.yaml", cwd=folder).status == 0
    masked = {"objective": "masked", "output_dir": "masked", "max_steps": 2}
    write_recipe(folder, "masked.yaml", **masked)
    assert run("pretrain", "masked.yaml", cwd=folder).status == 0
    return folder


def test_probes_of_every_layer(run, trained):
    result = run("probe", "--model", MODEL, *FAST, "--pixels", "--export", "features.parquet", cwd=trained)
    assert result.status == 0, result.stderr
    results, folder = result.results, trained / "out/probe-lbfgs-model"
    verify_folder(folder)
    assert json.loads((folder / "results.json").read_text()) == results
    metrics = results["metrics"]
    assert [row["layer"] for row in metrics["layers"]] == [0, 1]
    assert metrics["best"] in metrics["layers"]
    for row in [*metrics["layers"], metrics["pixels"]]:
        assert 0 <= row["validation_accuracy"] <= 1 and 0 <= row["test_accuracy"] <= 1
    assert metrics["pixels"]["layer"] is None
    assert results["probe"] == {
        "solver": "lbfgs",
        "pooling": "mean",
        "norm": "post",
        "standardize": True,
        "concatenate": 1,
        "fitted_on": "train and validation",
        "chosen_on": "validation",
        "reported_on": "test",
    }
    checkpoint = results["checkpoint"]
    assert (checkpoint["name"], checkpoint["objective"], checkpoint["step"]) == (MODEL, "next_pixel", 6)
    recorded = json.loads((trained / "out/results.json").read_text())["metrics"]
    assert checkpoint["validation_nats_per_token"] == pytest.approx(recorded["validation"]["nats_per_token"], rel=1e-6)
    assert checkpoint["parameters"] == recorded["parameters"]
    assert results["dataset"]["num_classes"] == 10
    assert Image.open(folder / "layers.png").width > 300
    table = datasets.load_dataset(
        "parquet", data_files=str(trained / "features.parquet"), cache_dir=str(trained / "cache-export")
    )["train"]
    assert len(table) == sum(results["dataset"]["num_images"].values())


def test_run_again_it_does_nothing_and_other_options_read_the_features(run, trained):
    first = run("probe", "--model", MODEL, *FAST, "--output_dir", "again", cwd=trained)
    before = {path: path.stat().st_mtime_ns for path in (trained / "again").rglob("*")}
    features = {path: path.stat().st_mtime_ns for path in (trained / "out/features").rglob("*.npy")}
    second = run("probe", "--model", MODEL, *FAST, "--output_dir", "again", cwd=trained)
    assert second.results == first.results
    assert before == {path: path.stat().st_mtime_ns for path in (trained / "again").rglob("*")}
    other = run("probe", "--model", MODEL, *FAST, "--no-refit", "--output_dir", "other", cwd=trained)
    assert other.results["probe"]["fitted_on"] == "train"
    assert features == {path: path.stat().st_mtime_ns for path in (trained / "out/features").rglob("*.npy")}
    refused = run("probe", "--model", MODEL, "--layers", "0", "--output_dir", "again", cwd=trained)
    assert "again was made from something else: options was" in refused.cause


def test_every_checkpoint_of_a_run(run, trained):
    names = [f"out/checkpoint-{step}" for step in (2, 4, 6)]
    result = run("probe", "--model", *names, *FAST, "--layers", "1", cwd=trained)
    assert result.status == 0, result.stderr
    found = [
        json.loads((trained / f"out/probe-lbfgs-checkpoint-{step}/results.json").read_text()) for step in (2, 4, 6)
    ]
    assert [results["checkpoint"]["step"] for results in found] == [2, 4, 6]
    # Validated every 3 steps: a checkpoint that wasn't says so and takes no other step's loss.
    losses = [results["checkpoint"]["validation_nats_per_token"] for results in found]
    assert losses[0] is None and losses[2] > 0
    assert len({results["checkpoint"]["sha256"] for results in found}) == 3


def test_masks_stay_on_and_vote(run, trained):
    result = run("probe", "--model", "masked/model", *FAST, "--num_masks", "3", "--mask_rate", "0.3", cwd=trained)
    assert result.status == 0, result.stderr
    assert result.results["checkpoint"]["objective"] == "masked"
    assert result.results["arguments"]["mask_rate"] == 0.3
    for row in result.results["metrics"]["layers"]:
        assert row["ensemble_masks"] == 3
        assert 0 <= row["ensemble_test_accuracy"] <= 1
    # The loss that its checkpoints have too, not the one at another rate or the bound.
    history = json.loads((trained / "masked/results.json").read_text())["log_history"]
    (loss,) = [entry["eval_loss"] for entry in history if entry["step"] == 2 and "eval_loss" in entry]
    assert result.results["checkpoint"]["validation_nats_per_token"] == loss
    # Three masks of test, one of train and of validation.
    assert len(list((trained / "masked/features").iterdir())) == 5
    without = run(
        "probe", "--model", "masked/model", *FAST, "--mask_rate", "0", "--output_dir", "without", cwd=trained
    )
    assert "ensemble_masks" not in without.results["metrics"]["best"]


def test_neighbours_raw_features_and_other_images(run, trained):
    arguments = ("--solver", "knn", "--neighbours", "1", "3", "--norm", "raw", "--dataset_name", "digits")
    images = ("--max_images", "30", "--split_seed", "5")
    result = run("probe", "--model", MODEL, *arguments, *images, cwd=trained)
    assert result.status == 0, result.stderr
    assert result.results["dataset"]["name"] == "digits"
    assert {row["neighbours"] for row in result.results["metrics"]["layers"]} <= {1, 3}
    assert (result.results["probe"]["solver"], result.results["probe"]["norm"]) == ("knn", "raw")
    (folder,) = (trained / "out").glob("probe-tokens-*")
    verify_folder(folder)


@pytest.mark.parametrize(("solver", "pooling"), [("sgd", "mean"), ("attentive", "attention")])
def test_probes_that_are_trained(run, trained, solver, pooling):
    arguments = ("--solver", solver, "--learning_rates", "0.1", "0.01", "--max_steps", "4", "--total_batch_size", "8")
    result = run("probe", "--model", MODEL, *arguments, cwd=trained)
    assert result.status == 0, result.stderr
    results, folder = result.results, trained / f"out/probe-{solver}-model"
    verify_folder(folder)
    assert [row["layer"] for row in results["metrics"]["layers"]] == [0, 1]
    for row in results["metrics"]["layers"]:
        assert row["learning_rate"] in (0.1, 0.01) and row["penalty"] == 0
        assert 0 <= row["validation_accuracy"] <= 1 and 0 <= row["test_accuracy"] <= 1
    description = results["probe"]
    assert (description["solver"], description["pooling"], description["fitted_on"]) == (solver, pooling, "train")
    assert Image.open(folder / "layers.png").width > 300
    # Results are what stays: neither checkpoints of the probes nor features.
    assert not (trained / f"out/probe-{solver}-model-training").exists()
    again = run("probe", "--model", MODEL, *arguments, cwd=trained)
    assert again.results == results


def test_trained_probes_of_a_masked_model(run, trained):
    arguments = ("--solver", "sgd", "--max_steps", "2", "--total_batch_size", "8", "--num_masks", "2")
    result = run("probe", "--model", "masked/model", *arguments, cwd=trained)
    assert result.status == 0, result.stderr
    assert {row["ensemble_masks"] for row in result.results["metrics"]["layers"]} == {2}


def test_two_processes_train_the_probes_that_one_does(run, trained):
    arguments = ("--solver", "sgd", "--max_steps", "4", "--total_batch_size", "8", "--learning_rates", "0.1")
    one = run("probe", "--model", MODEL, *arguments, "--output_dir", "one-process", cwd=trained)
    two = run.on_two_processes("probe", "--model", MODEL, *arguments, "--output_dir", "two-processes", cwd=trained)
    assert (one.results["processes"], two.results["processes"]) == (1, 2)
    for mine, theirs in zip(one.results["metrics"]["layers"], two.results["metrics"]["layers"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)


def test_few_labels(run, trained):
    arguments = ("--labels_per_class", "1", "--num_subsets", "2", "--output_dir", "few", *FAST)
    result = run("probe", "--model", MODEL, *arguments, cwd=trained)
    assert result.status == 0, result.stderr
    (row,) = result.results["metrics"]["low_data"]
    assert row["per_class"] == 1 and len(row["accuracies"]) == 2
    assert row["accuracy_mean"] == pytest.approx(np.mean(row["accuracies"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mask_rate", "0.2"), "`mask_rate` has no effect: out/model is a next-pixel model"),
        (("--neighbours", "3"), "`neighbours` has no effect where `solver` is 'lbfgs'"),
        (("--learning_rates", "1"), "`learning_rates` has no effect where `solver` is 'lbfgs'"),
        (("--num_train_epochs", "1"), "`num_train_epochs` has no effect with solver lbfgs"),
        (("--solver", "sgd", "--penalties", "1"), "`penalties` has no effect where `solver` is 'sgd'"),
        (("--solver", "attentive", "--pooling_heads", "3"), "`num_heads` must divide the width 16, got 3"),
        (("--max_images", "5"), "`max_images` has no effect without `dataset_name`"),
        (("--layers", "5"), "`layers` must be from 0 to 1, got 5"),
        (("--labels_per_class", "400"), "A subset of 400 images of every class was asked for"),
        (("--solver", "knn", "--neighbours", "500"), "500"),
        (("--dataset_name", "digits", "--label_column", "none", "--max_images", "20"), "has no labels"),
        (("--model", MODEL, "masked/model", "--output_dir", "x"), "each needs an output of its own, got x"),
        (("--model", "nowhere"), "nowhere is no checkpoint folder"),
    ],
)
def test_what_is_refused(run, trained, arguments, message):
    given = () if "--model" in arguments else ("--model", MODEL)
    output = () if "--output_dir" in arguments else ("--output_dir", "refused")
    assert message in run("probe", *given, *arguments, *output, cwd=trained).cause
    assert not (trained / "refused").exists()


def test_labels_outside_the_classes_are_named(run, trained):
    tokens = datasets.load_from_disk(str(trained / "out/tokens"))
    labels = tokens["test"]["label"][:]
    broken = tokens["test"].cast_column("label", datasets.Value("int64")).remove_columns("label")
    tokens["test"] = broken.add_column("label", [10, *labels[1:]])
    from hf_igpt.data.token_store import save_tokens

    save_tokens(tokens, trained / "broken")
    arguments = ("--model", MODEL, "--tokens", "broken", "--output_dir", "refused")
    assert "row 0 of split 'test' must be from 0 to 9, got 10" in run("probe", *arguments, cwd=trained).cause
