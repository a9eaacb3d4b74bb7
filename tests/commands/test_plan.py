"""The command plan: what it writes, what it refuses, and that its predictions follow from the options."""

import json
import re

import pytest

from hf_igpt.arguments import shipped_recipes
from hf_igpt.commands import plan as command
from hf_igpt.data.options import token_layout
from hf_igpt.results import write_results
from hf_igpt.training import devices
from hf_igpt.training.cost import training_flops
from hf_igpt.training.plan_text import duration
from hf_igpt.training.planning import plan
from hf_igpt.training.pretraining import model_config


def planned(*words: str) -> dict:
    ((name, arguments),) = command.parse(list(words)).items()
    return plan(arguments, name)


def on(*words: str) -> dict:
    """The plan for the only kind of device asked for."""
    (row,) = planned(*words)["devices"]
    return row


def test_a_plan_is_the_last_line_and_a_file(run, tmp_path):
    ended = run("plan", "digits", "--device", "cpu", "h200", "--max_steps", "10", cwd=tmp_path)
    assert ended.status == 0, ended.stderr
    results = json.loads((tmp_path / "outputs/plan/digits/results.json").read_text())
    assert results == ended.results and results["arguments"]["max_steps"] == 10
    (found,) = results["metrics"]["plans"]
    assert (found["recipe"], found["run"]["images"]) == ("digits", 320)
    assert [row["peak_source"] for row in found["devices"]] == ["measured", "data sheet"]
    assert [row["precision"] for row in found["devices"]] == ["fp32", "bf16"]
    for word in ("0.45M parameters", "1 x NVIDIA H200 SXM, bf16", "TFLOP/s, data sheet", "GB of one device"):
        assert word in ended.stdout
    # Nothing was made or fetched for the run itself.
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["plan"]
    assert run("plan", "digits", "--device", "h200", cwd=tmp_path).status == 0


def test_all_shipped_recipes_in_one_table(run, tmp_path):
    words = ["plan", "all", "--device", "h100", "--devices", "8", "--plan_dir", "mine"]
    ended = run(*words, cwd=tmp_path)
    assert "error: cifar10: `total_batch_size` must be devices x `per_device_train_batch_size`" in ended.cause
    assert "--per_device_train_batch_size null" in ended.cause and not list(tmp_path.rglob("*.json"))
    ended = run(*words, "--per_device_train_batch_size", "null", cwd=tmp_path)
    assert ended.status == 0, ended.stderr
    plans = json.loads((tmp_path / "mine/results.json").read_text())["metrics"]["plans"]
    others = re.compile(r"palette-sweep-.*|.*-(finetune|probe|vqvae)")
    names = [name for name in shipped_recipes() if not others.fullmatch(name)]
    assert [found["recipe"] for found in plans] == names
    assert sum(line.startswith("| `") for line in ended.stdout.splitlines()) == len(names)


def test_the_cost_of_a_run():
    arguments = command.parse(["cifar10"])["cifar10"]
    found = plan(arguments, "cifar10")
    config = model_config(arguments, token_layout(arguments))
    steps = 40 * -(-45_000 // 128)
    assert found["run"] == {"optimizer_steps": steps, "images": 128 * steps, "total_batch_size": 128}
    assert found["flops"]["run"] == 128 * steps * training_flops(config)
    assert planned("cifar10", "--num_images", "1280", "--num_train_epochs", "2")["run"]["optimizer_steps"] == 20


def test_what_does_not_fit_is_told_how_it_would():
    """The paper's largest model in its batch of 64: not on one device, and on 8 only where they share the state."""
    words = ("imagenet32-igpt-l", "--preset", "igpt-xl", "--image_size", "64", "--total_batch_size", "64")
    assert on(*words, "--device", "h100")["fitting_setting"] is None
    assert on(*words, "--device", "h100")["seconds"] is None
    copied = on(*words, "--device", "h200", "--devices", "8")
    assert not copied["fits"] and copied["fitting_setting"]["sharding"] == "full"
    assert copied["fitting_memory"]["peak"] <= copied["usable_bytes"] < copied["memory"]["peak"]
    setting = copied["fitting_setting"]
    flags = ["--sharding", "full", "--per_device_train_batch_size", str(setting["per_device_train_batch_size"])]
    flags += ["--gradient_checkpointing"] if setting["gradient_checkpointing"] else []
    assert on(*words, "--device", "h200", "--devices", "8", *flags)["fits"]


def test_rates_and_where_they_are_from(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "_own_peak", lambda precision: (1e11, devices.MEASURED))
    words = ("imagenet32-igpt-s", "--device")
    sheet, given = on(*words, "h100"), on(*words, "h100", "--measured_flops", "7e14")
    assert (sheet["peak_source"], given["peak_source"], given["peak_flops"]) == ("data sheet", "given", 7e14)
    assert sheet["utilization"] < given["utilization"] < 1
    halved = on(*words, "h100", "--utilization", str(sheet["utilization"] / 2))
    assert halved["seconds"] == pytest.approx(2 * sheet["seconds"])
    both = on(*words, "h100", "--devices", "2", "--per_device_train_batch_size", "32")
    assert both["seconds"] == pytest.approx(sheet["seconds"] / 2)
    again = on(*words, "h100", "--gradient_checkpointing", "--per_device_train_batch_size", "64")
    assert 1.2 < again["seconds"] / sheet["seconds"] < 4 / 3
    wide, narrow = on("imagenet32-igpt-l", "--device", "cpu"), on("digits", "--device", "cpu")
    assert wide["utilization"] > 1.5 * narrow["utilization"] and narrow["peak_flops"] == 1e11

    benchmark = {"machine": {"matmul_gflops": 650_000.0}}
    write_results(tmp_path / "benchmark.json", metrics=benchmark, command=["x"])
    write_results(
        tmp_path / "run.json", metrics={"training_flops": 6e17}, command=["x"], training_seconds=1000.0, processes=2
    )
    from_benchmark = on(*words, "h100", "--measured_flops", str(tmp_path / "benchmark.json"))
    assert (from_benchmark["peak_source"], from_benchmark["peak_flops"]) == ("measured", 6.5e14)
    from_run = on(*words, "h100", "--measured_flops", str(tmp_path / "run.json"))
    assert from_run["peak_source"] == "reached by a run"
    assert (from_run["peak_flops"], from_run["utilization"]) == (3e14, 1)
    needed = planned(*words, "h100")["flops"]["run"]
    assert from_run["seconds"] == pytest.approx(needed / 3e14, rel=1e-3), "as long as the run it is planned from"
    write_results(tmp_path / "other.json", metrics={}, command=["x"])
    with pytest.raises(ValueError, match="has neither `metrics.machine.matmul_gflops`"):
        on(*words, "h100", "--measured_flops", str(tmp_path / "other.json"))


def test_small_models_wait_for_kernels():
    row = on("digits", "--device", "h200")
    steps = planned("digits")["run"]["optimizer_steps"]
    assert row["seconds"] == pytest.approx(steps * (4 * 75 + 200) * 6e-6)


def test_windows_cost_less():
    full, windowed = (
        planned("imagenet32-igpt-s", "--device", "h100", *words)
        for words in ((), ("--attention_window_rows", "4", "--full_attention_every", "0"))
    )
    assert windowed["flops"]["run"] < full["flops"]["run"]
    caches = [found["devices"][0]["cache_bytes_per_image"] for found in (windowed, full)]
    assert caches[0] < caches[1] / 4


def test_a_palette_that_is_not_here_is_assumed(tmp_path):
    found = planned("digits", "--palette", "somebody/palette", "--device", "h100")
    assert found["notes"] == ["The palette somebody/palette is not here: 512 colours are assumed."]


def test_what_a_prediction_does_not_know_is_said():
    (note,) = planned("digits", "--torch_compile", "--device", "h100")["notes"]
    assert note.endswith("`torch_compile` changes nothing in them.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits", "--device", "tpu"], "`device` must be one of cpu, h100, h200, got 'tpu'"),
        (["digits", "--devices", "0"], "`devices` must be at least 1, got 0"),
        (["digits", "--devices", "3"], "`total_batch_size` must be divisible by the number of devices, got 32 for 3"),
        (["digits-probe"], "digits-probe is a recipe of probe: plan takes those of pretrain"),
        (["digits-finetune"], "digits-finetune is a recipe of finetune: plan takes those of pretrain"),
        (["digit"], "No recipe 'digit'"),
        (["digits", "--dataset_name", "somebody/else"], "`num_images` must be given: how many images somebody/else"),
        (["digits", "--measured_flops", "fast"], "must be a number of FLOP/s or a results JSON, got 'fast'"),
        (["digits", "--measured_flops", "-1"], "`measured_flops` must be above 0"),
        (["digits", "--device", "cpu", "h100", "--measured_flops", "1e12"], "is of one device: give one `device`"),
        (["digits", "--utilization", "1.5"], "`utilization` must be at most 1"),
    ],
)
def test_mistakes(words, message):
    with pytest.raises(ValueError) as error:
        planned(*words)
    assert message in str(error.value)


def test_it_writes_over_no_run(run, tmp_path):
    write_results(tmp_path / "run", metrics={}, command=["hf-igpt", "pretrain"])
    before = (tmp_path / "run/results.json").read_bytes()
    ended = run("plan", "digits", "--device", "h100", "--plan_dir", "run", cwd=tmp_path)
    assert "run holds the results of something else" in ended.cause
    assert (tmp_path / "run/results.json").read_bytes() == before


def test_durations():
    assert [duration(seconds) for seconds in (None, 0.02, 90, 7_200, 90_000, 86_400 * 800)] == [
        "-",
        "0.02 s",
        "90 s",
        "2 hours",
        "25 hours",
        "2.19 years",
    ]
