import copy

import matplotlib.axes
import numpy as np
import pytest
from PIL import Image

from hf_igpt.commands.probe import STORED_SOLVERS
from hf_igpt.figures import FIGURES, save_bars, save_checkpoints, save_layer_curve, save_layers
from hf_igpt.measured import SHORT_SOLVERS, SOLVERS, Measured
from hf_igpt.training.online_probe_arguments import ONLINE_SOLVERS


def probe(name="outputs/run/model", objective="next_pixel", peak=0.9, best=2, step=None, loss=2.0, **metrics) -> dict:
    rows = [{"layer": layer, "test_accuracy": peak - abs(layer - best) / 100} for layer in range(5)]
    return {
        "probe": {"solver": "lbfgs"},
        "checkpoint": {
            "name": name,
            "objective": objective,
            "step": step,
            "parameters": 1_362_000_000,
            "validation_nats_per_token": loss,
        },
        "metrics": {"layers": rows, "best": dict(rows[best]), "pixels": None} | metrics,
    }


def fine_tuned(objective: str, accuracy: float, masks: int = 1, from_scratch: bool = False, **test) -> dict:
    checkpoint = {"name": "outputs/run/model", "objective": objective}
    metrics = {"test": {"accuracy": accuracy, "ensemble_masks": masks} | test}
    return {"checkpoint": checkpoint, "from_scratch": from_scratch, "metrics": metrics}


@pytest.fixture
def axes(monkeypatch):
    """The axes that a figure is drawn on."""
    seen = []
    plot = matplotlib.axes.Axes.set_title
    monkeypatch.setattr(
        matplotlib.axes.Axes, "set_title", lambda self, *args, **kw: (seen.append(self), plot(self, *args, **kw))[1]
    )
    return seen


def lines(axes) -> dict[str, list]:
    return {line.get_label(): np.column_stack(line.get_data()).tolist() for line in axes.get_lines()}


def legend(axes) -> list[str]:
    return axes.get_legend_handles_labels()[1]


def test_layers(tmp_path, axes):
    # The best on validation isn't the best on test: it is marked all the same.
    results = probe(pixels={"test_accuracy": 0.72, "layer": None})
    results["metrics"]["best"]["layer"] = 1
    results["metrics"]["layers"].reverse()
    drawn = save_layers([Measured(results, name="a"), Measured(probe(peak=0.5, best=4), name="b")], tmp_path / "f.png")
    assert drawn[0] == {
        "name": "a",
        "layers": [0, 1, 2, 3, 4],
        "accuracies": pytest.approx([88, 89, 90, 89, 88]),
        "best_layer": 1,
        "best_accuracy": pytest.approx(89),
        "pixels": pytest.approx(72),
    }
    assert drawn[1]["best_accuracy"] == pytest.approx(50) and drawn[1]["pixels"] is None
    assert legend(axes[0]) == [
        "a (best: layer 1, 89.0 %)",
        "b (best: layer 4, 50.0 %)",
        "the same probe of raw pixels (72.0 %)",
        "best layer, chosen on validation",
    ]
    found = lines(axes[0])
    np.testing.assert_allclose(found["a (best: layer 1, 89.0 %)"], list(enumerate([88, 89, 90, 89, 88])))
    stars = [line.get_data() for line in axes[0].get_lines() if line.get_marker() == "*" and len(line.get_xdata())]
    np.testing.assert_allclose([[float(x[0]), float(y[0])] for x, y in stars], [[1, 89], [4, 50]])
    assert "%" in axes[0].get_ylabel() and "layer" in axes[0].get_xlabel()
    with Image.open(tmp_path / "f.png") as image:
        assert image.format == "PNG" and np.asarray(image.convert("L")).std() > 5


def test_one_curve_is_called_as_its_checkpoint(tmp_path, axes):
    save_layer_curve(probe("some/model"), tmp_path / "f.png")
    assert legend(axes[0])[0].startswith("some/model (best: layer 2")


def test_pixels_of_several_data_sets(tmp_path, axes):
    rows = [
        Measured(probe(pixels={"test_accuracy": height}), name=name)
        for name, height in zip("abc", (0.5, 0.6, 0.5), strict=True)
    ]
    save_layers(rows, tmp_path / "f.png")
    assert [label for label in legend(axes[0]) if "pixels" in label] == [
        "the same probe of raw pixels of a, c (50.0 %)",
        "the same probe of raw pixels of b (60.0 %)",
    ]


def test_checkpoints(tmp_path, axes):
    """In the order of training, one curve for a run, lower loss to the right, and steps beside the points."""
    points = [(131_072, 2.05, 0.93), (1025, 2.2, 0.8), (2_000_000, 2.06, 0.95)]
    measured = [Measured(probe(f"runs/a/checkpoint-{s}", step=s, loss=loss, peak=p)) for s, loss, p in points]
    measured.append(Measured(probe("runs/b/model", step=500, loss=2.3, peak=0.6)))
    drawn = save_checkpoints(measured, tmp_path / "f.png")
    assert drawn[0] == {
        "name": "runs/a (1.36B parameters)",
        "losses": [2.2, 2.05, 2.06],
        "accuracies": pytest.approx([80, 93, 95]),
        "steps": [1025, 131_072, 2_000_000],
    }
    assert drawn[1]["name"] == "runs/b (1.36B parameters)" and len(drawn) == 2
    left, right = axes[0].get_xlim()
    assert left > 2.3 and right < 2.05
    assert {text.get_text() for text in axes[0].texts} == {"1025", "131K", "2M", "500"}
    assert axes[0].get_xlabel() == "validation loss (nats per token)"
    np.testing.assert_allclose(lines(axes[0])["runs/a (1.36B parameters)"], [[2.2, 80], [2.05, 93], [2.06, 95]])


def test_names_join_checkpoints_and_long_runs_keep_few_labels(tmp_path, axes):
    measured = [Measured(probe(f"{n}/x", "masked", step=n, loss=3 - n / 100), name="S") for n in range(1, 41)]
    (curve,) = save_checkpoints(measured, tmp_path / "f.png")
    assert curve["name"] == "S" and curve["steps"] == list(range(1, 41))
    labels = [text.get_text() for text in axes[0].texts]
    assert 3 <= len(labels) <= 6 and "40" in labels
    assert axes[0].get_xlabel() == "validation loss (nats per masked token)"


def test_a_curve_is_of_one_kind_of_probe(tmp_path, axes):
    """The same checkpoint under two solvers is no progress of training."""
    by_knn = probe("runs/a/checkpoint-2", step=2, loss=1.9, peak=0.7)
    by_knn["probe"]["solver"] = "knn"
    pair = [probe("runs/a/checkpoint-1", step=1), by_knn]
    with pytest.raises(ValueError, match=r"`probe.solver` is 'lbfgs' in x and 'knn' in y, which would form one curve"):
        save_checkpoints([Measured(item, source) for item, source in zip(pair, "xy", strict=True)], tmp_path / "f.png")
    assert not list(tmp_path.iterdir())
    named = [Measured(item, name=name) for item, name in zip(pair, ("fitted", "neighbours"), strict=True)]
    assert [curve["name"] for curve in save_checkpoints(named, tmp_path / "f.png")] == ["fitted", "neighbours"]
    assert ":" not in axes[-1].get_title()
    save_layer_curve(by_knn, tmp_path / "f.png")
    assert axes[-1].get_title() == "Accuracy at every layer: nearest neighbours"


def test_bars(tmp_path, axes):
    masked = probe(objective="masked", peak=0.8)
    masked["metrics"]["best"] |= {"ensemble_masks": 5, "ensemble_test_accuracy": 0.81}
    online = probe(objective="masked", peak=0.7)
    online["probe"]["solver"] = "attentive"
    online["metrics"]["best"] |= {"ensemble_masks": 3, "ensemble_test_accuracy": 0.71}
    results = [probe(), masked, online, fine_tuned("next_pixel", 0.99)]
    results.append(fine_tuned("masked", 0.98, 5, single_mask_accuracy=0.975))
    results.append(fine_tuned("next_pixel", 0.6, from_scratch=True))
    drawn = save_bars([Measured(item) for item in results], tmp_path / "f.png")
    assert [tuple(bar.values()) for bar in drawn] == [
        ("linear probe", "next pixel", pytest.approx(90), 1),
        ("linear probe", "masked, one mask", pytest.approx(80), 1),
        ("linear probe", "masked, majority of 5 masks", pytest.approx(81), 5),
        ("attentive", "masked, one mask", pytest.approx(70), 1),
        ("attentive", "masked, majority of 3 masks", pytest.approx(71), 3),
        ("fine-tuned", "next pixel", pytest.approx(99), 1),
        ("fine-tuned", "masked, one mask", pytest.approx(97.5), 1),
        ("fine-tuned", "masked, majority of 5 masks", pytest.approx(98), 5),
        ("from scratch", "next pixel", pytest.approx(60), 1),
    ]
    heights = [bar.get_height() for bar in axes[0].patches]
    assert sorted(heights) == pytest.approx([60, 70, 71, 80, 81, 90, 97.5, 98, 99])
    assert [bar.get_height() for bar in axes[0].patches if bar.get_hatch()] == pytest.approx([81, 71, 98])
    places = [bar.get_x() for bar in axes[0].patches]
    assert all(gap > 0.89 for gap in np.diff(sorted(places)))
    words = [label.get_text() for label in axes[0].get_xticklabels()]
    assert words == ["linear probe", "attentive", "fine-tuned", "from scratch"]
    assert legend(axes[0]) == [
        "next pixel",
        "masked, one mask",
        "masked, majority of 5 masks",
        "masked, majority of 3 masks",
    ]


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        ("layers", "metrics.layers", None, "`metrics.layers` in x.json must be list, got None"),
        ("layers", "metrics.layers", [{"layer": 2}], "`test_accuracy` in x.json must be float or int, got None"),
        ("layers", "metrics.layers", [3], "`layer` in x.json must be int"),
        ("layers", "metrics.layers", [{"layer": 1, "test_accuracy": 0.5}], r"best one, 2, got \[1\]"),
        ("layers", "metrics.layers", [{"layer": 2, "test_accuracy": 0.5}] * 2, r"each layer once .* got \[2, 2\]"),
        ("layers", "metrics.layers", [{"layer": 2, "test_accuracy": 96.3}], r"fraction in \[0, 1\], got 96.3"),
        ("layers", "metrics.best", {}, "`metrics.best.layer` in x.json must be int"),
        ("layers", "metrics.pixels", 0.5, "`metrics.pixels` in x.json must be dict or NoneType, got 0.5"),
        ("layers", "checkpoint.name", 5, "`checkpoint.name` in x.json must be str, got 5"),
        ("checkpoints", "checkpoint.validation_nats_per_token", None, "`checkpoint.validation_nats_per_token` in x"),
        ("checkpoints", "checkpoint.step", True, "`checkpoint.step` in x.json must be int or NoneType, got True"),
        ("checkpoints", "checkpoint.objective", "other", "one of next_pixel, masked, got 'other'"),
        ("checkpoints", "checkpoint", [], "`checkpoint.objective` in x.json must be str"),
        ("bars", "metrics.best.test_accuracy", "0.9", "`metrics.best.test_accuracy` in x.json .* got '0.9'"),
        ("bars", "metrics.best.ensemble_masks", 5, "`metrics.best.ensemble_test_accuracy` in x.json"),
        ("layers", "probe", {}, "`probe.solver` in x.json must be str"),
        ("bars", "probe", {}, "`probe.solver` in x.json must be str"),
    ],
)
def test_results_that_are_refused(tmp_path, kind, field, value, message):
    """Nothing is drawn from half a file."""
    results = copy.deepcopy(probe())
    FIGURES[kind]([Measured(results, "x.json")], tmp_path / "whole.png")
    *path, last = field.split(".")
    inner = results
    for key in path:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(ValueError, match=message):
        FIGURES[kind]([Measured(results, "x.json")], tmp_path / "f.png")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.png"]


@pytest.mark.parametrize("kind", FIGURES)
def test_nothing_to_draw(tmp_path, kind):
    with pytest.raises(ValueError, match="needs at least one results.json, got none"):
        FIGURES[kind]([], tmp_path / "f.png")


def test_what_could_not_be_told_apart(tmp_path):
    twins = [Measured(probe(), "x.json"), Measured(probe(), "y.json")]
    for kind in ("layers", "bars"):
        with pytest.raises(ValueError, match=r"both be called .* \(of x.json, y.json\). Give each a name"):
            FIGURES[kind](twins, tmp_path / "f.png")
    many = [Measured(probe(), name=str(number)) for number in range(13)]
    with pytest.raises(ValueError, match="at most 12 bars, got 13"):
        save_bars(many, tmp_path / "f.png")
    with pytest.raises(ValueError, match="do not compare"):
        save_checkpoints([Measured(probe()), Measured(probe(objective="masked"))], tmp_path / "f.png")
    assert not list(tmp_path.iterdir())


def test_every_solver_of_probe_has_a_name_in_figures_cards_and_tables():
    solvers = {*STORED_SOLVERS, *ONLINE_SOLVERS}
    assert set(SHORT_SOLVERS) == set(SOLVERS) == solvers
