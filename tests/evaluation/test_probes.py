import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from hf_igpt.evaluation.low_data import low_data_probes
from hf_igpt.evaluation.probes import ProbeData, best_row, fit_probes


CLASSES = 3
SIZES = {"train": 120, "validation": 60, "test": 60}


def make_data(seed: int = 0, signal=(0.0, 0.8, 0.3), masks: int = 1) -> ProbeData:
    """Layers of 6 features whose classes are apart by `signal`: layer 1 tells most."""
    generator = np.random.default_rng(seed)
    labels = {split: generator.integers(0, CLASSES, size) for split, size in SIZES.items()}
    centres = generator.normal(size=(CLASSES, 6))

    def features(split):
        noise = [generator.normal(size=(SIZES[split], 6)) for _ in signal]
        layers = [n + strength * centres[labels[split]] for n, strength in zip(noise, signal, strict=True)]
        return [np.float32(3 * layer + 10) for layer in layers]

    splits = {split: features(split) for split in SIZES}
    return ProbeData(splits, labels, CLASSES, [features("test") for _ in range(masks - 1)])


def sklearn_accuracies(data: ProbeData, layer: int, penalty: float, refit: bool) -> tuple[float, float]:
    """Validation accuracy of a fit on train, and test accuracy of one on train and validation."""

    def score(fit_on, held_out):
        values = np.concatenate([data.features[split][layer] for split in fit_on]).astype(np.float64)
        labels = np.concatenate([data.labels[split] for split in fit_on])
        scaler = StandardScaler().fit(values)
        model = LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-8, max_iter=5000)
        model.fit(scaler.transform(values), labels)
        return model.score(scaler.transform(data.features[held_out][layer]), data.labels[held_out])

    return score(["train"], "validation"), score(["train", "validation"] if refit else ["train"], "test")


@pytest.mark.parametrize("refit", [True, False])
def test_every_layer_is_fitted_chosen_and_read_as_scikit_learn_would(refit):
    data, penalties = make_data(), [1e-4, 1e-2, 1.0]
    result = fit_probes(data, penalties=penalties, refit=refit)
    assert [row["layer"] for row in result["layers"]] == [0, 1, 2]
    for row in result["layers"]:
        grid = [sklearn_accuracies(data, row["layer"], penalty, refit) for penalty in penalties]
        assert row["validation_accuracy"] == pytest.approx(max(validation for validation, _ in grid), abs=1e-9)
        _, test = sklearn_accuracies(data, row["layer"], row["penalty"], refit)
        assert row["test_accuracy"] == pytest.approx(test, abs=0.02)
    assert result["best"]["layer"] == 1
    assert result["best"]["test_accuracy"] > 0.6


def test_test_labels_decide_nothing():
    data = make_data()
    other = ProbeData(data.features, data.labels | {"test": (data.labels["test"] + 1) % CLASSES}, CLASSES)
    for first, second in zip(fit_probes(data)["layers"], fit_probes(other)["layers"], strict=True):
        assert first["test_accuracy"] != second["test_accuracy"]
        for key in ("layer", "penalty", "validation_accuracy", "train_loss"):
            assert first[key] == second[key]


def test_the_best_row_is_chosen_by_validation():
    rows = [
        {"layer": 0, "validation_accuracy": 0.5, "validation_loss": 1.0, "test_accuracy": 0.9},
        {"layer": 1, "validation_accuracy": 0.7, "validation_loss": 0.9, "test_accuracy": 0.1},
        {"layer": 2, "validation_accuracy": 0.7, "validation_loss": 0.8, "test_accuracy": 0.2},
    ]
    assert best_row(rows)["layer"] == 2


def test_layers_one_at_a_time_are_the_same(monkeypatch):
    data, seen = make_data(), []
    together = fit_probes(data)
    monkeypatch.setattr("hf_igpt.evaluation.probes.GROUP_BYTES", 1)
    assert fit_probes(data, progress=seen.append) == together
    assert seen == [1, 1, 1]
    assert fit_probes(data, layers=[2])["best"] == together["layers"][2]


def test_concatenated_layers_know_what_each_of_them_knows():
    data = make_data(signal=(0.0, 0.0, 1.5))
    alone, together = (fit_probes(data, layers=[1], concatenate=count)["best"] for count in (1, 3))
    assert together["test_accuracy"] > alone["test_accuracy"] + 0.2


def test_masks_vote():
    data = make_data(masks=5)
    row = fit_probes(data, layers=[1])["best"]
    assert row["ensemble_masks"] == 5
    # Five noisy views of each image: their majority is better than one of them.
    assert row["ensemble_test_accuracy"] > row["test_accuracy"] + 0.03
    assert "ensemble_test_accuracy" not in fit_probes(make_data(), layers=[1])["best"]


def test_neighbours():
    result = fit_probes(make_data(), solver="knn", neighbours=[1, 15])
    assert result["best"]["layer"] == 1
    assert {row["neighbours"] for row in result["layers"]} <= {1, 15}
    assert result["best"]["test_accuracy"] > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [3]}, r"`layers` must be from 0 to 2, got 3"),
        ({"concatenate": 4}, "`concatenate` must be from 1 to the 3 layers, got 4"),
        ({"solver": "svm"}, "must be lbfgs or knn, got 'svm'"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit_probes(make_data(), **options)


def test_splits_and_rows_must_be_there():
    data = make_data()
    with pytest.raises(ValueError, match="got no validation"):
        ProbeData({"train": data.features["train"], "test": data.features["test"]}, data.labels, CLASSES)
    with pytest.raises(ValueError, match="got 59 in layer 0"):
        ProbeData(data.features | {"test": [layer[:-1] for layer in data.features["test"]]}, data.labels, CLASSES)


def test_more_labels_help_and_subsets_are_seeded():
    data = make_data(signal=(1.2,))
    rows = low_data_probes(data, 0, [1, 4, 25], num_subsets=4)
    assert [row["per_class"] for row in rows] == [1, 4, 25]
    assert [len(row["accuracies"]) for row in rows] == [4, 4, 4]
    assert rows[0]["accuracy_mean"] < rows[2]["accuracy_mean"]
    assert rows[0]["accuracy_std"] == pytest.approx(np.std(rows[0]["accuracies"], ddof=1))
    assert len(set(rows[0]["accuracies"])) > 1
    assert low_data_probes(data, 0, [4], num_subsets=4)[0] == rows[1]
    assert low_data_probes(data, 0, [4], num_subsets=1, seed=1)[0]["accuracies"] == rows[1]["accuracies"][1:2]
    assert low_data_probes(data, 0, [4], num_subsets=1)[0]["accuracy_std"] is None


def test_low_data_never_sees_other_labels():
    """Labels of validation and of train outside the subset may be anything."""
    data = make_data(signal=(1.2,))
    wrong = ProbeData(data.features, data.labels | {"validation": np.zeros(60, np.int64)}, CLASSES)
    assert low_data_probes(wrong, 0, [4]) == low_data_probes(data, 0, [4])


def test_more_labels_than_there_are():
    with pytest.raises(ValueError, match="A subset of 60 images of every class was asked for, but class"):
        low_data_probes(make_data(), 0, [4, 60])
