"""The speedrun and the trials of options: what they record, who wins, and that no place sees what it predicts."""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def call(monkeypatch, script: str, *arguments) -> None:
    import importlib

    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
    importlib.import_module(script).main()


@pytest.fixture(scope="module")
def tokens(run, tmp_path_factory) -> Path:
    """A folder with the tokens of a few digits."""
    folder = tmp_path_factory.mktemp("race")
    few = ("--dataset_name", "digits", "--max_images", 100)
    fitted = run("fit_palette", *few, "--num_colors", 16, "--image_size", 8, "--output_dir", "palette", cwd=folder)
    tokenized = run("tokenize_dataset", *few, "--palette", "palette", "--output_dir", "tokens", cwd=folder)
    assert (fitted.status, tokenized.status) == (0, 0), fitted.stderr + tokenized.stderr
    return folder / "tokens"


@pytest.mark.parametrize("contestant", ["plain", "native"])
def test_contestants_train_are_scored_on_every_pixel_and_never_twice(contestant, tokens, tmp_path, monkeypatch):
    arguments = ["--tokens", tokens, "--contestant", contestant, "--learning_rate", 0.01, "--cpu_threads", 1]
    arguments += ["--output", tmp_path / "runs.json"]
    call(monkeypatch, "speedrun", *arguments, "--steps", 1, 4)
    once, often = json.loads((tmp_path / "runs.json").read_text())["metrics"]["runs"]
    # No better than by chance after one step, on every pixel of the digits.
    assert 0 < often["validation_nats_per_token"] < 5 < once["validation_nats_per_token"] < 1.2 * math.log(512)
    assert often["seconds"] > 0
    call(monkeypatch, "speedrun", *arguments, "--steps", 1, "--seeds", 0, 1)
    results = json.loads((tmp_path / "runs.json").read_text())
    runs = results["metrics"]["runs"]
    assert [(run["steps"], run["seed"]) for run in runs] == [(1, 0), (4, 0), (1, 1)]
    assert runs[:2] == [once, often] and results["seeds"] == {"run 0": 0, "run 1": 1}


def test_ours_learns_small_images_first_and_has_the_sizes_of_its_peers(run, tmp_path, monkeypatch):
    import speedrun

    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(40):
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    common = ("pretrain", "cifar10-speedrun", "--dataset_name", "images", "--max_steps", 1, "--sample_steps", 0)
    common += ("--cpu_threads", 1, "--report_to", "none")
    stages = [
        run(*common, "--image_size", 8, "--output_dir", "small", cwd=tmp_path),
        run(*common, "--init_from", "small/model", "--output_dir", "large", cwd=tmp_path),
    ]
    assert [stage.status for stage in stages] == [0, 0], [stage.stderr for stage in stages]
    arguments = ["--contestant", "ours", "--learning_rate", 0.01, "--steps", 2, "--small_steps", 1, "--cpu_threads", 1]
    for option, folder in (
        ("tokens", "large"),
        ("palette", "large"),
        ("small_tokens", "small"),
        ("small_palette", "small"),
    ):
        arguments += [f"--{option}", tmp_path / folder / ("tokens" if "tokens" in option else "model")]
    call(monkeypatch, "speedrun", *arguments, "--output", tmp_path / "runs.json")
    (found,) = json.loads((tmp_path / "runs.json").read_text())["metrics"]["runs"]
    assert (found["steps"], found["small_steps"]) == (2, 1) and 0 < found["validation_nats_per_token"] < 8
    assert len(found["stage_seconds"]) == 2 and found["seconds"] == pytest.approx(sum(found["stage_seconds"]))
    monkeypatch.setattr(speedrun, "WIDTH", 32)
    with pytest.raises(SystemExit, match="Recipe cifar10-speedrun has other sizes than its peers"):
        call(monkeypatch, "speedrun", *arguments, "--output", tmp_path / "others.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contestant", "plain", "--tokens", "a", "--steps", 1], "--contestant plain needs --learning_rate"),
        (["--contestant", "native", "--small_steps", 1], "--contestant native needs --tokens"),
        (["--tokens", "a"], "Name a --contestant to run, or files to --summarize"),
        (["--summarize", "a.json"], "--summarize needs --target"),
        (["--summarize", "a.json", "--target", 2, "--contestant", "ours"], "--summarize has no use for --contestant"),
        (["--summarize", "a.json", "--target", 2, "--steps", 1], "--summarize has no use for --steps"),
        (
            ["--contestant", "plain", "--tokens", "a", "--steps", 1, "--learning_rate", 1, "--palette", "b"],
            "--contestant plain has no use for --palette",
        ),
        (
            ["--contestant", "ours", "--tokens", "a", "--steps", 1, "--learning_rate", 1],
            "--contestant ours needs --palette",
        ),
    ],
)
def test_options_that_are_missing_or_of_no_use_are_named(arguments, message, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=message):
        call(monkeypatch, "speedrun", *arguments, "--output", tmp_path / "out.json")


def test_a_file_takes_no_runs_of_another_kind(tmp_path):
    from resumed_runs import ResumedRuns

    path = str(tmp_path / "runs.json")
    finished = ResumedRuns(path, {"tokens": "a", "steps": 3})
    finished.add({"seed": 1, "option": "x", "found": 2.0}, {"seeds": [1]})
    again = ResumedRuns(path, {"tokens": "a", "steps": 3})
    assert again.has({"seed": 1, "option": "x"}) and not again.has({"seed": 2, "option": "x"})
    assert len(again.runs[0]["commit"]["sha"]) == 40
    with pytest.raises(SystemExit, match="other tokens, steps than asked for. Choose another --output"):
        ResumedRuns(path, {"tokens": "b", "steps": 4})


def raced(path: Path, contestant: str, runs: list[tuple[float, int, int, float, float]], tokens: str = "a") -> Path:
    """A contestant's file with runs of (rate, steps, seed, seconds, nats)."""
    from hf_igpt.results import write_results

    names = ("learning_rate", "steps", "seed", "seconds", "validation_nats_per_token")
    rows = [dict(zip(names, run, strict=True)) | {"cpu_threads": 2} for run in runs]
    metrics = {"contestant": contestant, "runs": rows, "sizes": [1], "tokens": tokens}
    write_results(path / f"{contestant}.json", metrics=metrics)
    return path / f"{contestant}.json"


def test_the_fastest_schedule_that_reaches_the_target_with_three_seeds_counts(tmp_path, monkeypatch):
    slow = [(0.1, 20, seed, 30.0 + seed, 2.8) for seed in range(3)]
    lucky = [(0.1, 10, 0, 15.0, 2.7)]
    close = [(0.2, 10, seed, 20.0, 2.7 + 0.2 * seed) for seed in range(3)]
    files = [
        raced(tmp_path, "plain", [*slow, *lucky, *close]),
        raced(tmp_path, "native", [(0.1, 20, seed, 60.0, 2.8) for seed in range(3)]),
        raced(tmp_path, "ours", [(0.1, 5, seed, 10.0, 2.85) for seed in range(3)]),
    ]
    # Another file of the same contestant counts by itself, and among what was tried.
    (tmp_path / "tuning").mkdir()
    files.append(raced(tmp_path / "tuning", "plain", [(0.3, 20, 1, 1.0, 2.8), (0.1, 10, 2, 1.0, 2.8)]))
    output = ["--target", 2.86, "--output", tmp_path / "out.json"]
    call(monkeypatch, "speedrun", "--summarize", *files, *output)
    metrics = json.loads((tmp_path / "out.json").read_text())["metrics"]
    plain = metrics["contestants"]["plain"]
    assert (plain["steps"], plain["median_seconds"], plain["seeds"]) == (20, 31.0, [0, 1, 2])
    assert [(run["learning_rate"], run["seed"]) for run in plain["tried"][-2:]] == [(0.3, 1), (0.1, 2)]
    assert len(plain["tried"]) == 9
    assert metrics["times_faster_than_the_better_peer"] == pytest.approx(3.1)
    with pytest.raises(SystemExit, match="ours has no three seeds that reach 2.8"):
        call(monkeypatch, "speedrun", "--summarize", *files, "--target", 2.8, "--output", tmp_path / "out.json")
    with pytest.raises(SystemExit, match="other tokens"):
        files[0] = raced(tmp_path, "plain", slow, tokens="b")
        call(monkeypatch, "speedrun", "--summarize", *files, *output)


@pytest.mark.parametrize("switches", [{}, {"qk_norm": True}, {"skips": True}, {"orders": True}], ids=str)
def test_options_let_no_place_see_what_it_predicts(switches):
    """In raster order, in another order, and after a prefix that sees itself."""
    from option_trials import OptionGPT

    torch.manual_seed(0)
    model = OptionGPT(3, **switches)
    torch.nn.init.normal_(model.head.weight)
    if model.skips is not None:
        torch.nn.init.normal_(model.skips)
    tokens = torch.randint(0, 512, (1, 9))
    shuffled = torch.randperm(9).unsqueeze(0)
    for order, prefix in ((torch.arange(9).unsqueeze(0), None), (shuffled, None), (None, torch.tensor([4]))):
        for pixel in range(9):
            changed = tokens.clone()
            changed[0, pixel] = (changed[0, pixel] + 1) % 512
            place = pixel if order is None else int((order[0] == pixel).nonzero())
            before, after = (model(each, order, prefix)[1][-1][0] for each in (tokens, changed))
            if prefix is None:
                assert torch.equal(before[: place + 1], after[: place + 1])
                assert place == 8 or not torch.equal(before[place + 1], after[place + 1])
            elif place >= prefix - 1:
                assert torch.allclose(before[: place + 1], after[: place + 1], atol=1e-5)
            else:
                assert not torch.allclose(before[0], after[0], atol=1e-5)


def test_trials_go_round_the_images_again(monkeypatch):
    """More steps than an epoch has are trained, not cut off."""
    import option_trials

    seen = []
    monkeypatch.setattr(
        option_trials, "training_loss", lambda model, tokens, *_: seen.append(len(tokens)) or model.loss()
    )
    monkeypatch.setattr(option_trials.OptionGPT, "loss", lambda model: model.head.weight.sum(), raising=False)
    arguments = argparse.Namespace(steps=4, learning_rate=0.1, matrix_learning_rate=0.1)
    option_trials.train(torch.zeros(40, 9, dtype=torch.long), {}, arguments, seed=0)
    assert seen == [option_trials.BATCH] * 4


def test_trials_are_recorded_one_by_one_and_never_repeated(tokens, tmp_path, monkeypatch):
    import option_trials

    monkeypatch.setattr(option_trials, "PROBE_IMAGES", {"train": 60, "validation": 10, "test": 10})
    arguments = ["--tokens", tokens, "--steps", 2, "--output", tmp_path / "trials.json"]
    call(monkeypatch, "option_trials", *arguments, "--seeds", 0)
    first = json.loads((tmp_path / "trials.json").read_text())["metrics"]["runs"]
    assert [run["option"] for run in first] == list(option_trials.TRIALS)
    assert len({run["validation_nats_per_token"] for run in first}) == len(first)
    assert all(0 <= run["probe"]["test_accuracy"] <= 1 for run in first)
    assert ["probe_that_sees_all" in run for run in first] == [
        bool(each.get("prefix")) for each in option_trials.TRIALS.values()
    ]
    call(monkeypatch, "option_trials", *arguments, "--trials", "nothing", "--seeds", 0, 1)
    runs = json.loads((tmp_path / "trials.json").read_text())["metrics"]["runs"]
    assert runs[:-1] == first and (runs[-1]["option"], runs[-1]["seed"]) == ("nothing", 1)
