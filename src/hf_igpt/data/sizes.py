"""How many images known data sets have, so that a run can be planned without reading one."""

from hf_igpt.data.options import ImageOptions
from hf_igpt.data.sources import VALIDATION_FRACTION
from hf_igpt.data.splitting import choose_splits


# Images by split, as `load_images` finds them.
KNOWN_SPLITS = {
    "digits": {"train": 1438, "test": 359},
    "uoft-cs/cifar10": {"train": 50_000, "test": 10_000},
    "uoft-cs/cifar100": {"train": 50_000, "test": 10_000},
    "tanganke/stl10": {"train": 5_000, "test": 8_000},
    "ILSVRC/imagenet-1k": {"train": 1_281_167, "validation": 50_000, "test": 100_000},
}


def known_training_images(options: ImageOptions) -> int | None:
    """
    Images that `load_images` would leave to train on; None for a data set whose size isn't known here.

    Raises:
        ValueError: the data set has no such split.
    """
    sizes = KNOWN_SPLITS.get(options.dataset_name)
    if sizes is None:
        return None
    roles = choose_splits(
        options.dataset_name, list(sizes), options.train_split, options.validation_split, options.test_split
    )
    count = sizes[roles["train"]]
    if "test" not in roles and options.test_fraction is not None:
        count -= round(count * options.test_fraction)
    if "validation" not in roles and not options.fold_validation:
        count -= round(count * (options.validation_fraction or VALIDATION_FRACTION))
    elif "validation" in roles and options.fold_validation:
        count += sizes[roles["validation"]]
    return count if options.max_images is None else min(count, options.max_images)
