import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_igpt.data.classes import class_names, class_subset, labels_of


def tokens_with(labels, feature=None) -> datasets.Dataset:
    columns = {"input_ids": [[0, 1]] * len(labels), "label": labels}
    features = None
    if feature is not None:
        features = datasets.Features({"input_ids": datasets.Sequence(datasets.Value("uint8"), 2), "label": feature})
    return datasets.Dataset.from_dict(columns, features=features)


def test_names_come_from_the_label_type():
    split = tokens_with([1, 0, 1], datasets.ClassLabel(names=["cat", "dog", "emu"]))
    assert class_names(datasets.DatasetDict(train=split)) == ["cat", "dog", "emu"]


def test_names_without_a_label_type_are_the_numbers_of_train():
    splits = datasets.DatasetDict(train=tokens_with([2, 0]), test=tokens_with([3]))
    assert class_names(splits) == ["0", "1", "2"]
    with pytest.raises(ValueError, match=r"row 0 of split 'test' must be from 0 to 2, got 3"):
        labels_of(splits["test"], 3, "test")


def test_a_split_without_labels_is_named():
    splits = datasets.DatasetDict(train=tokens_with([0, 1]), test=tokens_with([0]).remove_columns("label"))
    with pytest.raises(ValueError, match="split 'test' has no labels, only input_ids"):
        class_names(splits)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least two, got 1"):
        class_names(datasets.DatasetDict(train=tokens_with([0, 0])))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None, 1], "row 1 of split 'train' is missing"),
        ([0, -1], "row 1 of split 'train' must be from 0 to 1, got -1"),
        ([0, 1, 2], "row 2 of split 'train' must be from 0 to 1, got 2"),
        ([0.0, 0.5], "row 1 of split 'train' must be a whole number, got 0.5"),
        (["cat", "dog"], "must be whole numbers, got string"),
    ],
)
def test_labels_that_are_no_classes(labels, message):
    with pytest.raises(ValueError, match=message):
        labels_of(tokens_with(labels), 2, "train")


def test_labels_keep_their_order():
    labels = labels_of(tokens_with([1, 0, 1, 1]), 2, "train")
    assert labels.dtype == np.int64
    assert labels.tolist() == [1, 0, 1, 1]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 5), st.integers(0, 2**40))
def test_a_subset_has_as_many_of_every_class(values, per_class, seed):
    labels = np.array(values)
    counts = np.bincount(labels, minlength=4)
    if counts.min() < per_class:
        with pytest.raises(ValueError, match=f"class {int(np.argmax(counts < per_class))} has"):
            class_subset(labels, per_class, seed, 4)
        return
    rows = class_subset(labels, per_class, seed, 4)
    assert (np.diff(rows) > 0).all()
    assert np.bincount(labels[rows], minlength=4).tolist() == [per_class] * 4


def test_subsets_of_one_seed_are_nested_and_seeds_differ():
    labels = np.repeat(np.arange(5), 40)
    small, large = (class_subset(labels, per_class, 3, 5) for per_class in (4, 25))
    assert set(small) < set(large)
    assert set(small) != set(class_subset(labels, 4, 4, 5))
