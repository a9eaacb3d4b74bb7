import pytest

from hf_igpt.arguments import load_recipe, parse_arguments, shipped_recipes
from hf_igpt.data.options import ImageOptions
from hf_igpt.data.sizes import KNOWN_SPLITS, known_training_images
from hf_igpt.data.sources import load_images


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fold_validation": True},
        {"validation_fraction": 0.2},
        {"max_images": 100},
        {"validation_split": "none", "max_images": 5000},
    ],
)
def test_digits_have_as_many_images_as_loading_leaves(options):
    expected = load_images("digits", **options).splits["train"].num_rows
    assert known_training_images(ImageOptions(dataset_name="digits", **options)) == expected


@pytest.mark.parametrize(
    ("name", "options", "images"),
    [
        ("uoft-cs/cifar10", {}, 45_000),
        ("uoft-cs/cifar100", {"fold_validation": True}, 50_000),
        ("tanganke/stl10", {}, 4_500),
        ("ILSVRC/imagenet-1k", {"test_split": "validation", "validation_fraction": 0.04}, 1_229_920),
        ("ILSVRC/imagenet-1k", {}, 1_281_167),
        ("ILSVRC/imagenet-1k", {"fold_validation": True}, 1_331_167),
        ("somebody/else", {}, None),
    ],
)
def test_known_data_sets(name, options, images):
    assert known_training_images(ImageOptions(dataset_name=name, **options)) == images


def test_a_split_that_there_is_not():
    with pytest.raises(ValueError, match="`train_split` 'unlabeled' is not in tanganke/stl10"):
        known_training_images(ImageOptions(dataset_name="tanganke/stl10", train_split="unlabeled"))


def test_every_shipped_recipe_names_a_known_data_set():
    named = {load_recipe(name)[0].get("dataset_name") for name in shipped_recipes()} - {None}
    assert named <= KNOWN_SPLITS.keys()
    assert parse_arguments(ImageOptions, "", []).dataset_name in KNOWN_SPLITS
