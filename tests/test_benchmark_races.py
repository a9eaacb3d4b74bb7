"""The speedrun and the trials of options: what they record, who wins, and that no place sees what it predicts."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch


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
    runs = json.loads((tmp_path / "runs.json").read_text())["metrics"]["runs"]
    assert [(run["steps"], run["seed"]) for run in runs] == [(1, 0), (4, 0), (1, 1)]
    assert runs[:2] == [once, often]


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
