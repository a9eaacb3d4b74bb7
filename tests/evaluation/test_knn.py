import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_igpt.evaluation.knn import knn_predictions, nearest_rows


def clusters(count: int, seed: int, classes: int = 4, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes far from the origin, as mean-pooled features are."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = generator.integers(0, classes, count)
    features = 30 + centres[labels] + generator.normal(size=(count, width))
    return torch.tensor(features), torch.tensor(labels)


def naive(train, labels, queries, num_classes, k, temperature, standardize) -> list[int]:
    train, queries = train.numpy(), queries.numpy()
    if standardize:
        mean, deviation = train.mean(0), train.std(0)
        train, queries = (train - mean) / deviation, (queries - mean) / deviation
    answers = []
    for query in queries:
        cosines = [float(row @ query / np.linalg.norm(row) / np.linalg.norm(query)) for row in train]
        votes = [0.0] * num_classes
        for row in sorted(range(len(train)), key=lambda row: (-cosines[row], row))[:k]:
            votes[labels[row]] += math.exp(cosines[row] / temperature)
        answers.append(votes.index(max(votes)))
    return answers


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_vote_of_a_naive_loop(standardize, temperature):
    train, labels = clusters(90, 0)
    queries, truth = clusters(60, 1)
    # Without their common mean: cosines that float32 can tell apart.
    shift = 0 if standardize else 30
    train, queries = train - shift, queries - shift
    ks = (1, 7, 40, 90)
    found = knn_predictions(train, labels, queries, 4, ks, temperature, standardize)
    assert found.shape == (4, 60) and found.dtype == torch.int64
    for row, k in enumerate(ks):
        assert found[row].tolist() == naive(train, labels, queries, 4, k, temperature, standardize)
    assert len({tuple(row.tolist()) for row in found}) > 1
    assert (found[1] == truth).float().mean() > 0.5


def test_a_neighbour_of_low_weight_does_not_outvote_a_near_one():
    """One image in the same direction against three at 60 degrees: it weighs exp(0.5 / T) times as much."""
    angles = torch.tensor([0.0, 1.0, 1.0, 1.0]) * math.pi / 3
    train = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels, query = torch.tensor([0, 1, 1, 1]), torch.tensor([[2.0, 0.0]])
    votes = [knn_predictions(train, labels, query, 2, (4,), t, False).item() for t in (0.07, 0.44, 0.47, 10)]
    assert math.exp(0.5 / 0.44) > 3 > math.exp(0.5 / 0.47)
    assert votes == [0, 0, 1, 1]


def test_a_common_mean_hides_the_classes_unless_it_is_removed():
    train, labels = clusters(300, 0)
    queries, truth = clusters(200, 1)
    # One feature that is large and says nothing.
    train[:, 0] += 3000 * torch.rand(300, generator=torch.Generator().manual_seed(0))
    queries[:, 0] += 3000 * torch.rand(200, generator=torch.Generator().manual_seed(1))
    plain, standardized = (
        (knn_predictions(train, labels, queries, 4, (20,), standardize=choice)[0] == truth).float().mean()
        for choice in (False, True)
    )
    assert standardized > plain + 0.1


@settings(max_examples=20, deadline=None)
@given(batch_size=st.integers(1, 40), seed=st.integers(0, 5))
def test_batches_make_no_difference(batch_size, seed):
    train, labels = clusters(50, seed)
    queries, _ = clusters(33, seed + 10)
    whole = knn_predictions(train, labels, queries, 4, (3, 50))
    assert torch.equal(knn_predictions(train, labels, queries, 4, (3, 50), batch_size=batch_size), whole)


@pytest.mark.parametrize("sign", [1, -1])
def test_ties(sign):
    """Of equally near images the first ones vote; of equal votes the lower class wins. Negative similarities too."""
    train = torch.ones(500, 4)
    labels = torch.arange(500).flip(0) % 5
    query = sign * torch.ones(3, 4)
    found = knn_predictions(train, labels, query, 5, (1, 2, 3, 500), standardize=False)
    assert labels[:3].tolist() == [4, 3, 2]
    assert found.tolist() == [[4] * 3, [3] * 3, [2] * 3, [0] * 3]


def test_features_that_never_change_and_images_without_a_direction():
    train, labels = clusters(40, 0)
    queries, _ = clusters(20, 1)
    padded = [torch.cat([features, torch.full((len(features), 2), 7.0)], dim=1) for features in (train, queries)]
    expected = knn_predictions(train, labels, queries, 4, (5,))
    assert torch.equal(knn_predictions(padded[0], labels, padded[1], 4, (5,)), expected)
    assert knn_predictions(torch.eye(3), torch.tensor([0, 1, 2]), torch.zeros(1, 3), 3, (3,), 0.07, False) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ks": (5, 21)}, r"between 1 and the 20 training images, got \[5, 21\]. Leave out"),
        ({"ks": (0,)}, "between 1 and"),
        ({"ks": ()}, "between 1 and"),
        ({"temperature": 0}, "`temperature` must be above 0 .* got 0 and 256"),
        ({"temperature": math.nan}, "`temperature` must be above 0"),
        ({"batch_size": 0}, "`batch_size` at least 1"),
        ({"num_classes": 3}, r"`labels` must lie in \[0, 2\], got 0 to 3"),
        ({"labels": torch.arange(20) % 4 - 1}, r"`labels` must lie in \[0, 3\], got -1 to 2"),
        ({"labels": torch.zeros(19, dtype=torch.int64)}, "must fit, got"),
        ({"queries": torch.zeros(2, 5)}, r"must fit, got \(20, 6\), \(2, 5\) and \(20,\)"),
        ({"queries": torch.tensor([[0.0] * 6, [math.nan] * 6])}, "`queries` must be finite, row 1 is not"),
        ({"train": torch.full((20, 6), math.inf)}, "`train` must be finite, row 0 is not"),
    ],
)
def test_what_is_refused(changes, message):
    train, _ = clusters(20, 0)
    options = {"train": train, "labels": torch.arange(20) % 4, "queries": train[:2], "num_classes": 4, "ks": (5,)}
    with pytest.raises(ValueError, match=message):
        knn_predictions(**(options | changes))


def test_nearest_rows_are_those_of_the_plain_formula():
    generator = torch.Generator().manual_seed(0)
    train, queries = torch.randn(40, 6, generator=generator) + 5, torch.randn(3, 6, generator=generator) + 5
    mean, scale = train.mean(dim=0), train.std(dim=0, correction=0)
    scaled = [(features - mean) / scale for features in (train, queries)]
    expected = torch.nn.functional.cosine_similarity(scaled[1][:, None], scaled[0], dim=-1)
    similarity, rows = nearest_rows(train, queries, 4)
    torch.testing.assert_close(similarity, expected.sort(dim=1, descending=True).values[:, :4])
    torch.testing.assert_close(expected.gather(1, rows), similarity)
    assert nearest_rows(train, train[7:8], 2)[1][0, 0] == 7
