"""The benchmarks' own code: what they record, on tiny models; their figures are not tested."""

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
