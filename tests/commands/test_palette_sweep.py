"""A sweep over palettes: what it leaves, a second run, and what is refused before anything is trained."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_recipe import TINY

from hf_igpt import IGPTImageProcessor
from hf_igpt.data.options import TokenLayout
from hf_igpt.data.token_store import load_tokens
from hf_igpt.training.arguments import PretrainArguments
from hf_igpt.training.cost import training_flops
from hf_igpt.training.palette_sweep import check_distinct, equal_steps
from hf_igpt.training.pretraining import model_config


SIZES = [17, 3]


def write_sweep(folder: Path, **changes) -> None:
    values = {name: value for name, value in TINY.items() if name != "num_colors"}
    values |= {"palette_sizes": SIZES, "max_steps": 12, "eval_steps": 100} | changes
    lines = [f"{key}: {str(value).lower() if isinstance(value, bool) else value}\n" for key, value in values.items()]
    (folder / "sweep.yaml").write_text("".join(lines))


def modified(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder)
    ended = run("palette_sweep", "sweep.yaml", cwd=folder)
    assert ended.status == 0, ended.stderr
    return folder, ended.results


def test_a_sweep_leaves_plot_table_and_results(finished):
    folder, results = finished
    assert json.loads((folder / "out/results.json").read_text()) == results
    few, many = results["metrics"]["palettes"]
    assert (few["num_colors"], many["num_colors"]) == (3, 17)
    # 17 greys are all there are.
    assert 10 < few["psnr_db"] < 30 and many["psnr_db"] is None
    assert few["nats_per_token"] < math.log(3) + 0.2 and few["uniform_nats_per_token"] == math.log(3)
    for row in (few, many):
        path = folder / f"out/colors-{row['num_colors']}"
        assert IGPTImageProcessor.from_pretrained(path / "model").palette_hash == row["palette_hash"]
        for density in ("uniform", "empirical"):
            bits = row["bits_per_dim"][density] - row["bits_per_dim_of_colors"][density]
            assert bits == pytest.approx(row["nats_per_token"] / 3 / math.log(2), rel=1e-9)
        assert row["bits_per_dim"]["empirical"] < row["bits_per_dim"]["uniform"]
        assert 0 <= row["probe_test_accuracy"] <= 1 and row["probe_layer"] in (0, 1)
        scored = np.load(path / "evaluation-test/nats_per_image.npy", allow_pickle=False)
        assert len(scored) == len(load_tokens(path / "tokens")["test"]) == 40
    with Image.open(folder / "out/palette-sweep.png") as picture:
        assert picture.format == "PNG" and picture.width > 500
    table = (folder / "out/table.md").read_text().splitlines()
    assert len(table) == 4 and table[-1].startswith(f"| 17 | exact | {many['nats_per_token']:.3f} |")


def test_training_flops_are_equal(finished):
    few, many = finished[1]["metrics"]["palettes"]
    assert few["optimizer_steps"] == 12 > many["optimizer_steps"]
    # As equal as whole steps allow.
    step = many["training_flops"] / many["optimizer_steps"]
    assert abs(few["training_flops"] - many["training_flops"]) <= step / 2
    assert many["parameters"] > few["parameters"]


def test_finished_palettes_are_left_alone(run, finished):
    folder, results = finished
    before = modified(folder)
    # The digits are scikit-learn's: without it there are no images to read.
    changes = ("--palette_sizes", 3, 17, "--logging_steps", 7)
    again = run("palette_sweep", "sweep.yaml", *changes, cwd=folder, fault="missing sklearn")
    assert again.status == 0, again.stderr
    assert again.results == results and modified(folder) == before
    (folder / "out/table.md").unlink()
    again = run("palette_sweep", "sweep.yaml", cwd=folder, fault="missing sklearn")
    assert again.status == 0, again.stderr
    assert "Tokenizing" not in again.stderr and "Scoring" not in again.stderr and "Probing" not in again.stderr
    assert again.results["metrics"] == results["metrics"] and again.results["source"] == results["source"]
    after = modified(folder)
    whole = {str(folder / "out" / name) for name in ("results.json", "table.md", "palette-sweep.png")}
    assert {name for name in after if after[name] != before[name]} == whole
    more = run("palette_sweep", "sweep.yaml", "--palette_sizes", 3, 5, 17, cwd=folder)
    assert more.status == 0, more.stderr
    rows = more.results["metrics"]["palettes"]
    assert [row["num_colors"] for row in rows] == [3, 5, 17] and [rows[0], rows[2]] == results["metrics"]["palettes"]
    assert {name for name, when in modified(folder).items() if before.get(name, when) != when} == whole


def test_a_finished_sweep_that_lost_a_model_trains_it_again(run, finished, tmp_path):
    folder, results = finished
    shutil.copytree(folder / "out", tmp_path / "out")
    write_sweep(tmp_path)
    shutil.rmtree(tmp_path / "out/colors-3/model")
    ended = run("palette_sweep", "sweep.yaml", cwd=tmp_path)
    assert ended.status == 0, ended.stderr
    few, expected = ended.results["metrics"]["palettes"][0], results["metrics"]["palettes"][0]
    assert few["nats_per_token"] == pytest.approx(expected["nats_per_token"], rel=1e-6)
    assert (tmp_path / "out/colors-3/model/model.safetensors").is_file()


def test_a_killed_sweep_goes_on(run, finished, tmp_path):
    write_sweep(tmp_path)
    killed = run("palette_sweep", "sweep.yaml", cwd=tmp_path, fault="kill before step 8")
    assert killed.status < 0 and not (tmp_path / "out/results.json").exists()
    ended = run("palette_sweep", "sweep.yaml", cwd=tmp_path)
    assert ended.status == 0, ended.stderr
    for row, expected in zip(ended.results["metrics"]["palettes"], finished[1]["metrics"]["palettes"], strict=True):
        assert row["nats_per_token"] == pytest.approx(expected["nats_per_token"], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--palette_sizes", 3, 18, 40], "at most the 17 distinct colours .* got 18, 40. Leave these out"),
        (["--palette_sizes", 3, 5000], "`palette_sizes` must be at most 4096"),
        (["--palette_sizes", 3, 3], "`palette_sizes` must differ"),
        (["--palette_sizes", 3, 4096, "--max_steps", 1], "leaves no step for 4096 colours"),
        (["--num_colors", 4], "`num_colors` has no effect in palette_sweep"),
        (["--palette", "somewhere"], "`palette` has no effect in palette_sweep"),
        (["--objective", "masked"], "`objective` must be next_pixel"),
        (["--label_column", "none"], "digits has no classes to probe for"),
        (["--score_split", "nothing"], "digits has no split 'nothing'"),
    ],
)
def test_what_is_refused_before_anything_is_trained(run, tmp_path, arguments, message):
    write_sweep(tmp_path)
    cause = run("palette_sweep", "sweep.yaml", *arguments, cwd=tmp_path).cause
    assert re.search(message, cause), cause
    assert not list(tmp_path.glob("out/colors-*"))


def test_steps_by_hand():
    arguments = PretrainArguments(
        image_size=[8], hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_steps=100
    )
    steps = equal_steps(arguments, [8, 4096])
    costs = {
        size: training_flops(model_config(arguments, TokenLayout("palette", size, 1, (8, 8)))) for size in (8, 4096)
    }
    assert steps == {8: 100, 4096: round(100 * costs[8] / costs[4096])} and 1 <= steps[4096] < 20


def test_palettes_are_compared_with_the_colours_there_are():
    counts = np.zeros(1 << 24, dtype=np.int64)
    counts[[1, 5, 77]] = 3
    check_distinct(counts, [2, 3])
    with pytest.raises(ValueError, match="the 3 distinct colours"):
        check_distinct(counts, [2, 4])
