"""The benchmarks' own code: what they record, on tiny models; their figures are not tested."""

import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_igpt import ImageGPTConfig


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_scaling_records_steps_memory_and_what_does_not_fit(tmp_path):
    """A thousand million images don't."""
    options = shlex.split("--over batch --points 2 1000000000 --size 1x64 --tokens 16 --kinds ours plain --seconds 0")
    files = ["--output", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "rows.png")]
    subprocess.run([sys.executable, "scaling.py", *options, *files], cwd=BENCHMARKS, check=True, timeout=300)
    rows = json.loads((tmp_path / "rows.json").read_text())["metrics"]["rows"]
    assert [(row["kind"], row["batch"], row["out_of_memory"]) for row in rows] == [
        ("ours", 2, False),
        ("plain", 2, False),
        ("ours", 10**9, True),
        ("plain", 10**9, True),
    ]
    for row in rows[:2]:
        assert row["images_per_second"] > 0 and row["peak_bytes"] > 4 * row["parameters"] > 0
    biases_and_norms = rows[1]["parameters"] - rows[0]["parameters"]
    assert biases_and_norms == 64 * (3 + 1 + 4 + 1) + 3 * 64
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


def test_the_plain_gpt_sees_no_token_before_it_predicts_it():
    from plain_gpt import PlainGPT

    torch.manual_seed(0)
    model = PlainGPT(2, 24, 3, 8, values=10)
    tokens = torch.randint(0, 10, (1, 8))
    seen = []
    model.head.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    for position in (None, 5):
        changed = tokens.clone()
        if position is not None:
            changed[0, position] = (changed[0, position] + 1) % 10
        model(changed)
    same = (seen[0] == seen[1]).all(dim=-1)[0].tolist()
    assert same == [True] * 6 + [False] * 2


def test_rooflines_limit_and_shares(monkeypatch):
    import roofline

    monkeypatch.setattr(roofline, "matmul_peak", lambda *arguments, **options: 1e9)
    monkeypatch.setattr(roofline.Machine, "_bandwidth", lambda machine: 1e9)
    config = ImageGPTConfig(image_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    machine = roofline.Machine("cpu", "fp32", config, 2)
    rows = [
        roofline.training_row(machine, config, 2, 1),
        roofline.features_row(machine, config, 2, 1),
        roofline.sampling_row(machine, config, 2),
    ]
    for row in rows:
        assert row["limit_seconds"] == pytest.approx(sum(row["limits"].values())) and row["limit_seconds"] > 0
        assert sum(row["shares"].values()) == pytest.approx(1, abs=0.2)
        assert row["shares"]["products"] > 0
    assert rows[0]["shares"]["attention"] > 0 and rows[0]["shares"]["optimizer"] > 0
    training, features, sampling = (row["limits"] for row in rows)
    inner = 2 * 16 * 2 * 12 * 32**2  # two images, one layer after the other, forward
    assert features["products"] == pytest.approx(2 * inner / 1e9)
    assert training["products"] == pytest.approx(3 * (2 * inner + 2 * 2 * 16 * 32 * 512) / 1e9)
    assert sampling["keys and values"] == pytest.approx(4 * 2 * 2 * 32 * 2 * (16 * 17 / 2) / 1e9)
    assert roofline.quantization_row(machine, 3, 1)["fraction_of_limit"] > 0


@pytest.mark.parametrize(
    ("operation", "group"),
    [
        ("aten::mm", "products"),
        ("aten::mul", "elementwise, norms and copies"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::bmm", "attention"),
        ("aten::_fused_adamw_", "optimizer"),
        ("_BlockRMSNormBackward", None),
    ],
)
def test_operations_have_groups(operation, group):
    import roofline

    assert roofline.group_of(operation) == group


def test_batches_of_the_loader_are_single_reads(tmp_path):
    import data_loading

    tokens = data_loading.stored_tokens(str(tmp_path), 20, 6)
    data_loading.check_against_single_reads(tokens, 6)
    assert data_loading.images_per_second(data_loading.make_loader(tokens, 6, 4, "flip", None, 0), 0.01) > 0


def test_sizes_are_counted_as_the_cost_model_and_as_gpt2s_authors_count():
    import model_sizes

    from hf_igpt.training.cost import parameters

    small, gpt2 = model_sizes.igpt_row("igpt-s"), model_sizes.gpt2_row("GPT-2 small")
    assert small["parameters"] == parameters(ImageGPTConfig()) == sum(small["parameters_by_part"].values())
    assert gpt2["parameters"] == 124_439_808 == sum(gpt2["parameters_by_part"].values())
    assert small["biases"] == 0 and gpt2["biases"] == 12 * (3 + 1 + 4 + 1 + 2) * 768 + 768
    assert small["parameters_by_part"]["vocabulary"] == (513 + 512) * 512
    assert gpt2["parameters_by_part"]["vocabulary"] == 50257 * 768


def finished_run(folder: Path, name: str, digest: str, nats: float, **options) -> list[str]:
    """What a run and the probe of its model leave, as far as a comparison reads it; the folders of both."""
    from hf_igpt.results import write_results
    from hf_igpt.training.arguments import PretrainArguments

    sizes = {"image_size": [8], "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    arguments = vars(PretrainArguments(**sizes | options, output_dir=name))
    scores = {"nats_per_token": nats, "nats_per_token_standard_error": 0.01, "num_images": 5}
    metrics = {"optimizer_steps": 3, "images_seen": 6, "parameters": 7, "validation": scores}
    metrics["validation"]["unigram_nats_per_token"] = 6.0
    (folder / name).mkdir()
    run = {"palette_hash": "a", "model_sha256": digest, "training_seconds": 1.0, "seeds": {"seed": arguments["seed"]}}
    write_results(folder / name, metrics=metrics, arguments=arguments, **run)
    (folder / f"{name}-probe").mkdir()
    accuracy = {"layer": 1, "test_accuracy": nats / 10}
    found = {"best": accuracy, "pixels": {"layer": None, "test_accuracy": 0.1}}
    about = {"probe": {"solver": "lbfgs"}, "checkpoint": {"sha256": digest}, "dataset": {"num_images": {"test": 9}}}
    write_results(folder / f"{name}-probe", metrics=found, **about)
    return [str(folder / name), str(folder / f"{name}-probe")]


def compare(monkeypatch, script: str, runs: list[list[str]], folder: Path, picture: bool = True) -> dict:
    """What a comparison of runs writes."""
    results, probes = zip(*runs, strict=True)
    files = ["--output", str(folder / "compared.json")]
    files += ["--picture", str(folder / "compared.png")] if picture else []
    # Probes in another order: it is their weights that belong to a run.
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--results", *results, "--probes", *reversed(probes), *files])
    importlib.import_module(script).main()
    if picture:
        assert (folder / "compared.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((folder / "compared.json").read_text())


def test_sizes_of_images_are_compared_with_the_probes_of_their_own_models(tmp_path, monkeypatch):
    runs = [finished_run(tmp_path, "large", "x", 2.5, image_size=[16]), finished_run(tmp_path, "small", "y", 4.5)]
    rows = compare(monkeypatch, "resolution", runs, tmp_path)["metrics"]["sizes"]
    assert [(row["grid"], row["nats_per_token"]) for row in rows] == [([8, 8], 4.5), ([16, 16], 2.5)]
    assert [row["probe"]["test_accuracy"] for row in rows] == [0.45, 0.25]
    assert rows[0]["training_gflop_per_image"] > rows[0]["feature_gflop_per_image"] > 0
    with pytest.raises(SystemExit, match="learning_rate"):
        other = finished_run(tmp_path, "other", "z", 4.5, learning_rate=0.1)
        compare(monkeypatch, "resolution", [*runs, other], tmp_path)


def test_attention_is_compared_over_seeds_and_every_run_needs_its_probe(tmp_path, monkeypatch):
    runs = [
        finished_run(tmp_path, "full-0", "a", 3.0),
        finished_run(tmp_path, "full-1", "b", 3.2, seed=1),
        finished_run(tmp_path, "windows-0", "c", 2.0, attention_window_rows=2, full_attention_every=0),
    ]
    compared = compare(monkeypatch, "hybrid_attention", runs, tmp_path)
    found = compared["metrics"]["attention"]
    assert compared["seeds"] == {"run 0": 0, "run 1": 1}
    assert found["full"]["nats_per_token"] == pytest.approx(3.1)
    assert found["full"]["probe_test_accuracy"] == pytest.approx(0.31)
    assert found["2 rows in every block"]["runs"][0]["probe"]["test_accuracy"] == pytest.approx(0.2)
    with pytest.raises(SystemExit, match="No probe is of the model of .*windows-0"):
        compare(monkeypatch, "hybrid_attention", [*runs[:2], [runs[2][0], runs[0][1]]], tmp_path)


def test_options_are_compared_by_optimizer_positions_and_rate(tmp_path, monkeypatch):
    runs = [
        finished_run(tmp_path, "adam", "a", 3.0),
        finished_run(tmp_path, "both-0", "b", 2.0, optimizer="muon", rotary_base=100, learning_rate=0.01),
        finished_run(tmp_path, "both-1", "c", 2.2, optimizer="muon", rotary_base=100, learning_rate=0.01, seed=1),
    ]
    found = compare(monkeypatch, "options", runs, tmp_path, picture=False)["metrics"]["options"]
    assert {name: len(row["runs"]) for name, row in found.items()} == {
        "Adam, 0.003": 1,
        "Muon and rotary positions (base 100), 0.01": 2,
    }
    assert found["Muon and rotary positions (base 100), 0.01"]["nats_per_token"] == pytest.approx(2.1)
    with pytest.raises(SystemExit, match="hidden_size"):
        other = finished_run(tmp_path, "wide", "d", 4.5, hidden_size=64)
        compare(monkeypatch, "options", [*runs, other], tmp_path, picture=False)
    with pytest.raises(SystemExit, match="Two runs of Adam, 0.003 have the seed 0"):
        twice = finished_run(tmp_path, "adam-again", "e", 3.1)
        compare(monkeypatch, "options", [*runs, twice], tmp_path, picture=False)
    with pytest.raises(SystemExit, match="validated on different images"):
        elsewhere = finished_run(tmp_path, "elsewhere", "f", 3.1, seed=1)
        results = json.loads((tmp_path / "elsewhere" / "results.json").read_text())
        results["metrics"]["validation"]["unigram_nats_per_token"] = 5.0
        (tmp_path / "elsewhere" / "results.json").write_text(json.dumps(results))
        compare(monkeypatch, "options", [*runs, elsewhere], tmp_path, picture=False)


def test_small_images_first_count_their_flops_and_the_model_is_the_large_one(tmp_path, monkeypatch):
    def trained(name: str, tokens: int, flops: float, parameters: int, nats: float, **options) -> str:
        folder = finished_run(tmp_path, name, name, nats, **options)[0]
        results = json.loads((tmp_path / name / "results.json").read_text())
        results["metrics"] |= {"training_flops": flops, "parameters": parameters}
        results["metrics"]["validation"]["tokens_per_image"] = tokens
        (tmp_path / name / "results.json").write_text(json.dumps(results))
        return folder

    def compared(*runs: str) -> dict:
        output = str(tmp_path / "progressive.json")
        monkeypatch.setattr(sys, "argv", ["progressive_resolution.py", "--results", *runs, "--output", output])
        importlib.import_module("progressive_resolution").main()
        return json.loads((tmp_path / "progressive.json").read_text())["metrics"]

    small = trained("small-0", 64, 1000.0, 5, 3.5)
    large = trained("large-0", 256, 9000.0, 7, 2.5, init_from="small-0/model", image_size=[16])
    direct = trained("direct-0", 256, 10050.0, 7, 2.7, image_size=[16])
    metrics = compared(small, large, direct)
    assert metrics["parameters"] == 7 and metrics["tokens_per_image"] == 256
    ways = metrics["ways"]
    assert {way: row["nats_per_token"] for way, row in ways.items()} == {"direct": 2.7, "progressive": 2.5}
    assert ways["progressive"]["runs"][0]["training_flops"] == 10000.0
    with pytest.raises(SystemExit, match="differ in training FLOPs by more than 1 %"):
        compared(small, large, trained("cheap-0", 256, 9800.0, 7, 2.7, image_size=[16]))
    with pytest.raises(SystemExit, match="Every way needs the same seeds, got small .0.; progressive .0.; direct .1."):
        compared(small, large, trained("direct-1", 256, 10050.0, 7, 2.7, image_size=[16], seed=1))
    with pytest.raises(SystemExit, match="Two direct runs have the seed 0"):
        compared(small, large, direct, trained("direct-again", 256, 10050.0, 7, 2.7, image_size=[16]))
    with pytest.raises(SystemExit, match="learning_rate"):
        compared(small, large, trained("other", 256, 10050.0, 7, 2.7, image_size=[16], learning_rate=0.1))


SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if "def main(" in path.read_text())


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_what_it_takes(script, monkeypatch, capsys):
    if script == "checkpoint_chaos":
        pytest.importorskip("ckpt_chaos", reason="pip install ckpt-chaos")
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).main()
    assert ended.value.code == 0 and "--output" in capsys.readouterr().out
