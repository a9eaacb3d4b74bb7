import logging
import warnings

import numpy as np
import pytest
import torch

from hf_igpt.evaluation import logistic
from hf_igpt.evaluation.logistic import LinearProbes, fit_logistic


PENALTIES = (1e-6, 1e-3, 0.1, 10.0)


def layered(layers: int, count: int, width: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Features as mean-pooled ones are: far from the origin, correlated, their variances over four orders of magnitude.
    Later layers tell more about the class; class k has about k + 1 parts of the images.
    """
    generator = np.random.default_rng(seed)
    share = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    labels = generator.choice(classes, count, p=share)
    features = []
    for layer in range(layers):
        centres = 0.4 * (layer + 1) * generator.normal(size=(classes, width))
        mixing = generator.normal(size=(width, width)) * np.logspace(0, -2, width)[:, None]
        hidden = centres[labels] + generator.normal(size=(count, width))
        features.append(30 * generator.normal(size=width) + hidden @ mixing)
    return torch.tensor(np.stack(features), dtype=torch.float32), torch.tensor(labels)


def grid(layers: int, penalties=PENALTIES) -> torch.Tensor:
    return torch.tensor([penalties] * layers, dtype=torch.float64)


def standardized(features: torch.Tensor) -> torch.Tensor:
    values = features.double()
    deviation = values.std(dim=0, correction=0)
    return (values - values.mean(dim=0)) / torch.where(deviation > 1e-6, deviation, torch.inf)


def reference(features: torch.Tensor, labels: torch.Tensor, penalty: float) -> tuple[float, float]:
    """Objective and training accuracy of scikit-learn, run to a small gradient."""
    from sklearn.linear_model import LogisticRegression

    values, truth = standardized(features).numpy(), labels.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(
            C=1 / (penalty * len(truth)), tol=1e-9 if len(truth) < 100 else 1e-7, max_iter=5000
        ).fit(values, truth)
    columns = np.searchsorted(model.classes_, truth)
    loss = -model.predict_log_proba(values)[np.arange(len(truth)), columns].mean()
    return loss + penalty / 2 * float(np.square(model.coef_).sum()), model.score(values, truth)


def objective(probes: LinearProbes, row: int, column: int, features, labels, penalty: float):
    """Objective in float64 from the returned weights, and the weights for standardised features that it depends on."""
    values, deviation = standardized(features), features.double().std(dim=0, correction=0)
    raw = probes.weights[row, column].double()
    weights = (raw * deviation.unsqueeze(1)).requires_grad_()
    bias = (probes.bias[row, column].double() + features.double().mean(dim=0) @ raw).requires_grad_()
    loss = torch.nn.functional.cross_entropy(values @ weights + bias, labels)
    return loss + penalty / 2 * weights.square().sum(), (weights, bias)


def assert_agrees(features: torch.Tensor, labels: torch.Tensor, num_classes: int, penalties=PENALTIES) -> None:
    probes = fit_logistic(features, labels, grid(len(features), penalties), num_classes)
    assert probes.converged.all()
    accuracies = probes.accuracies(features, labels)
    for row, values in enumerate(features):
        for column, penalty in enumerate(penalties):
            expected, accuracy = reference(values, labels, penalty)
            # Theirs may end above the minimum, which bounds ours more closely from above.
            assert expected * (1 - 1e-3) < probes.objective[row, column] < expected * (1 + 1e-4)
            assert accuracies[row, column] == pytest.approx(accuracy, abs=0.002)
            ours = objective(probes, row, column, values, labels, penalty)[0].item()
            assert ours == pytest.approx(expected, rel=1e-3), "the returned weights are not the fitted ones"


def test_agrees_with_scikit_learn_for_every_layer_and_penalty():
    assert_agrees(*layered(3, 400, 12, 4), 4)


def test_agrees_with_fewer_images_than_features():
    assert_agrees(*layered(2, 30, 70, 3), 3)


def test_agrees_in_single_precision(monkeypatch):
    monkeypatch.setattr(logistic, "DOUBLE_ELEMENTS", 0)
    assert_agrees(*layered(1, 400, 12, 4), 4)


@pytest.mark.parametrize("standardize", [True, False])
def test_gradient_vanishes_at_the_optimum(standardize):
    features, labels = layered(2, 400, 12, 4)
    if not standardize:
        features = (features - features.mean(dim=1, keepdim=True)) / 5 + 3
    probes = fit_logistic(features, labels, grid(2, (1e-3, 0.1)), 4, standardize=standardize, tolerance=1e-10)
    for row, values in enumerate(features):
        for column, penalty in enumerate((1e-3, 0.1)):
            if standardize:
                value, leaves = objective(probes, row, column, values, labels, penalty)
            else:
                leaves = [tensor[row, column].double().requires_grad_() for tensor in (probes.weights, probes.bias)]
                value = torch.nn.functional.cross_entropy(values.double() @ leaves[0] + leaves[1], labels)
                value = value + penalty / 2 * leaves[0].square().sum()
            value.backward()
            assert value.item() == pytest.approx(probes.objective[row, column].item(), rel=1e-5)
            assert max(leaf.grad.abs().max().item() for leaf in leaves) < 2e-5
            assert leaves[0].detach().abs().max() > 0.01


def test_measured_curvature_is_the_diagonal_of_the_hessian():
    features, labels = layered(1, 60, 5, 3)
    inputs = torch.cat([standardized(features[0]), torch.ones(60, 1, dtype=torch.float64)], dim=1)
    penalties, eigenvalues = grid(1, (0.1, 1.0)), torch.ones(1, 5, dtype=torch.float64)
    problem = logistic._Problem(inputs.T.unsqueeze(0), labels, penalties, eigenvalues, 3)
    weights = torch.randn(1, 2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem.measure_curvature(problem.loss_and_errors(problem.logits(weights))[1])
    for column, penalty in enumerate((0.1, 1.0)):

        def value(flat, penalty=penalty):
            loss = torch.nn.functional.cross_entropy(inputs @ flat.view(3, 6).T, labels)
            return loss + penalty / 2 * flat.view(3, 6)[:, :-1].square().sum()

        hessian = torch.autograd.functional.hessian(value, weights[0, column].flatten())
        torch.testing.assert_close(1 / problem.initial[0, column].flatten(), hessian.diagonal())


def test_few_labels_take_few_iterations():
    """Answers are sure there, and the bound of the curvature is far above it."""
    features, labels = layered(1, 60, 100, 4)
    probes = fit_logistic(features, labels, grid(1, (1e-6, 1e-5, 1e-4)), 4)
    assert probes.converged.all()
    assert probes.iterations.max() < 150


def test_a_class_without_images_is_never_predicted():
    features, labels = layered(1, 300, 8, 3)
    present = torch.tensor([0, 2, 4])[labels]
    probes = fit_logistic(features, present, grid(1, (1e-3, 0.1)), 5)
    assert probes.converged.all()
    assert set(probes.logits(features).argmax(dim=-1).unique().tolist()) <= {0, 2, 4}
    for column, penalty in enumerate((1e-3, 0.1)):
        assert probes.objective[0, column] == pytest.approx(reference(features[0], present, penalty)[0], rel=1e-3)


def test_constant_features_count_for_nothing():
    features, labels = layered(1, 300, 8, 3)
    with_constants = torch.cat([features, torch.full((1, 300, 2), 1234.567)], dim=2)
    few, more = (fit_logistic(values, labels, grid(1), 3) for values in (features, with_constants))
    assert more.weights[:, :, 8:].abs().max() == 0
    torch.testing.assert_close(few.objective, more.objective, rtol=1e-4, atol=0)


def test_layers_and_penalties_do_not_see_each_other():
    features, labels = layered(3, 300, 12, 4)
    together = fit_logistic(features, labels, grid(3), 4)
    assert not torch.allclose(together.objective[0], together.objective[2], rtol=0.01)
    for row in range(3):
        for column, penalty in enumerate(PENALTIES):
            alone = fit_logistic(features[row : row + 1], labels, grid(1, (penalty,)), 4)
            torch.testing.assert_close(alone.objective[0, 0], together.objective[row, column], rtol=2e-5, atol=0)


def test_layers_in_one_batch_as_on_a_gpu():
    features, labels = layered(3, 300, 12, 4)
    apart = fit_logistic(features, labels, grid(3), 4)
    batched = logistic._fit_group(features, labels, grid(3), 4, True, 1e-7, 1000)
    assert batched.converged.all()
    torch.testing.assert_close(apart.objective, batched.objective, rtol=2e-5, atol=0)


def test_each_layer_has_its_own_penalties():
    features, labels = layered(2, 300, 12, 4)
    penalties = torch.tensor([[1e-3, 1.0], [1.0, 1e-3]], dtype=torch.float64)
    probes = fit_logistic(features, labels, penalties, 4)
    assert probes.train_loss[0, 0] < probes.train_loss[0, 1]
    assert probes.train_loss[1, 0] > probes.train_loss[1, 1]


def test_the_order_of_images_does_not_matter():
    features, labels = layered(2, 300, 12, 4)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    first = fit_logistic(features, labels, grid(2), 4)
    second = fit_logistic(features[:, order], labels[order], grid(2), 4)
    torch.testing.assert_close(first.objective, second.objective, rtol=2e-5, atol=0)
    wrong = fit_logistic(features[:, order], labels, grid(2), 4)
    assert (wrong.objective[:, 0] > 1.5 * first.objective[:, 0]).all()


def test_accuracies_are_those_of_the_logits_and_of_features_never_seen():
    features, labels = layered(2, 600, 12, 4)
    probes = fit_logistic(features[:, :400], labels[:400], grid(2), 4)
    held_out, truth = features[:, 400:], labels[400:]
    expected = (probes.logits(held_out).argmax(dim=-1) == truth).double().mean(dim=-1)
    torch.testing.assert_close(probes.accuracies(held_out, truth), expected)
    assert probes.weights.shape == (2, 4, 12, 4) and probes.bias.shape == (2, 4, 4)
    assert expected[1, 1] > 0.7 > 0.4 >= (truth == 0).double().mean()


def test_says_what_has_not_converged(caplog):
    features, labels = layered(1, 300, 12, 4)
    with caplog.at_level(logging.WARNING):
        probes = fit_logistic(features, labels, grid(1, (1e-6, 10.0)), 4, max_iterations=12)
    assert probes.converged.tolist() == [[False, True]]
    assert probes.iterations[0, 0] == 12 > probes.iterations[0, 1] > 0
    assert "1 of 2 probes" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 1, 3, 0])}, "from 0 to 2, got 0 to 3"),
        ({"labels": torch.tensor([0, -1, 2, 0])}, "got -1 to 2"),
        ({"labels": torch.tensor([0.0, 1.0, 2.0, 0.0])}, "whole numbers"),
        ({"labels": torch.tensor([0, 1, 2])}, r"shape \[4\]"),
        ({"num_classes": 1}, "at least 2, got 1"),
        ({"features": torch.zeros(2, 0, 3)}, "none 0"),
        ({"features": torch.zeros(4, 3)}, r"got \[4, 3\]"),
        ({"features": torch.stack([torch.zeros(4, 3), torch.full((4, 3), torch.nan)])}, "layer 1 must be finite"),
        ({"penalties": torch.tensor([[0.1], [0.0]])}, "above 0"),
        ({"penalties": torch.tensor([[0.1], [torch.inf]])}, "finite"),
        ({"penalties": torch.tensor([0.1, 0.1])}, "shape"),
        ({"penalties": torch.ones(2, 0)}, "shape"),
        ({"penalties": torch.ones(3, 1)}, "shape"),
    ],
)
def test_refuses_what_cannot_be_fitted(change, message):
    good = {
        "features": torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)),
        "labels": torch.tensor([0, 1, 2, 0]),
        "penalties": torch.full((2, 1), 0.1),
        "num_classes": 3,
    }
    fit_logistic(**good)
    with pytest.raises(ValueError, match=message):
        fit_logistic(**{**good, **change})
