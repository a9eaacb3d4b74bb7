import json

import pytest
from PIL import Image

from hf_igpt.results import write_results


def write_probe(folder, name="outputs/run/model", objective="next_pixel", peak=0.9, step=100, loss=2.0) -> None:
    rows = [{"layer": layer, "test_accuracy": peak - layer / 100} for layer in range(3)]
    write_results(
        folder,
        metrics={"layers": rows, "best": rows[1], "pixels": {"layer": None, "test_accuracy": 0.4}, "ensemble": None},
        command=["hf-igpt", "probe"],
        probe={"solver": "lbfgs"},
        checkpoint={
            "name": name,
            "objective": objective,
            "step": step,
            "parameters": 1000,
            "validation_nats_per_token": loss,
        },
    )


def write_fine_tuned(folder) -> None:
    checkpoint = {"name": "outputs/run/model", "objective": "masked"}
    write_results(
        folder, metrics={"test": {"accuracy": 0.95, "ensemble_masks": 5}}, command=["x"], checkpoint=checkpoint
    )


@pytest.fixture
def work(tmp_path):
    (tmp_path / "first").mkdir()
    write_probe(tmp_path / "first")
    write_probe(tmp_path / "second.json", step=200, loss=1.9, peak=0.8)
    (tmp_path / "tuned ü").mkdir()
    write_fine_tuned(tmp_path / "tuned ü")
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("layers", ["--results", "first", "second.json", "--names", "small model", "large"]),
        ("checkpoints", ["--results", "first/results.json", "second.json"]),
        ("bars", ["--results", "first", "tuned ü"]),
    ],
)
def test_a_figure_and_the_points_drawn(run, work, kind, arguments):
    ended = run("figure", "--kind", kind, *arguments, cwd=work)
    assert ended.status == 0, ended.stderr
    folder = work / "outputs/figure" / kind
    assert sorted(path.name for path in folder.iterdir()) == [f"{kind}.png", "results.json"]
    with Image.open(folder / f"{kind}.png") as image:
        assert image.format == "PNG" and image.width > 600
    results = json.loads((folder / "results.json").read_text())
    assert results == ended.results and results["figure"] == kind
    points = results["metrics"]["points"]
    if kind == "layers":
        assert [point["name"] for point in points] == ["small model", "large"]
        assert points[1]["accuracies"] == pytest.approx([80, 79, 78]) and points[0]["pixels"] == 40
    elif kind == "checkpoints":
        assert len(points) == 1 and points[0]["steps"] == [100, 200]
        assert points[0]["accuracies"] == pytest.approx([89, 79]) and points[0]["losses"] == [2.0, 1.9]
    else:
        assert [(point["kind"], point["masks"]) for point in points] == [("linear probe", 1), ("fine-tuned", 5)]
    again = run("figure", "--kind", kind, *arguments, cwd=work)
    assert again.status == 0 and again.results["metrics"] == results["metrics"]


def damaged(work) -> None:
    path = work / "first/results.json"
    path.write_text(path.read_text()[:-20])


def of_another_version(work) -> None:
    path = work / "first/results.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (None, [], "Give `--results`"),
        (None, ["--results", "third"], "There is no third/results.json: run probe or finetune first"),
        (None, ["--results", "first", "--names", "a", "b"], "one name for each of the 1 results, got 2"),
        (None, ["--results", "first", "--kind", "pie"], "`kind` must be one of layers, checkpoints, bars"),
        (None, ["--results", "tuned ü"], "`metrics.layers` in tuned ü must be list, got None"),
        (None, ["--results", "first", "--output_dir", "first"], "first holds the results of something else"),
        (None, ["--results", "first", "--output_dir", "second.json"], "second.json can't be written to"),
        (damaged, ["--results", "first"], "can't be read as JSON"),
        (of_another_version, ["--results", "first"], "`schema_version` in first/results.json must be 1, got 2"),
    ],
)
def test_mistakes(run, work, change, arguments, message):
    if change:
        change(work)
    before = (work / "first/results.json").read_bytes()
    ended = run("figure", *arguments, cwd=work)
    assert message in ended.cause
    assert (work / "first/results.json").read_bytes() == before
    assert not list(work.rglob("*.png"))


def test_without_matplotlib(run, work):
    ended = run("figure", "--results", "first", cwd=work, fault="missing matplotlib")
    assert "pip install 'hf-igpt[train]'" in ended.cause
