"""The fields of a fine-tuning recipe."""

from dataclasses import dataclass
from operator import not_

from hf_igpt.arguments import option
from hf_igpt.data.augmentation import AUGMENTATIONS, RESIZED_CROP
from hf_igpt.data.options import LabelledImages
from hf_igpt.training.arguments import TrainerOptions


@dataclass(kw_only=True)
class FinetuneArguments(TrainerOptions, LabelledImages):
    """Options of finetune: from which checkpoint, on which images, how to train, when to stop."""

    output_dir: str = option("outputs/finetune", "folder for everything the run writes")
    seed: int = option(
        0, "seed of data order, augmentation, masks, ties in a vote and fresh weights", low=0, high=2**31 - 1
    )
    model: str = option("outputs/digits/model", "checkpoint folder or Hub name")
    from_scratch: bool = option(
        False, "train the same model from fresh weights, as the baseline of what pretraining is worth"
    )

    labels_per_class: int | None = option(
        None, "train on a seeded subset with so many images of every class", low=1, only_if=("max_train_images", not_)
    )
    max_train_images: int | None = option(None, "train on a seeded subset of so many images", low=1)
    subset_seed: int | None = option(None, "seed of that subset; by default 0", low=0, high=2**31 - 1)
    augmentation: str = option(
        "crop_flip",
        "drawn anew for every image and epoch: reflection-padded crops and flips of the tokens, or ImageNet's random "
        "resize and 224-pixel crop of the pixels",
        choices=(*AUGMENTATIONS, RESIZED_CROP),
    )
    mask_rate: float | None = option(
        None, "for masked models, probability that a pixel is hidden; by default 0.15", above=0, high=1
    )
    num_masks: int | None = option(
        None, "for masked models, masks of every image that vote together in the end; by default 5", low=1
    )

    pooler_layer: int | None = option(
        None, "layer whose features the classifier reads, 0 being the embeddings; by default the final norm", low=0
    )
    generative_loss_weight: float | None = option(
        None, "weight of the pretraining's loss beside the class loss; by default 1, and 0 with from_scratch", low=0
    )

    per_device_eval_batch_size: int = option(64, "images at once on one device in validation", low=1)
    num_train_epochs: float = option(
        30.0, "passes over the training images, unless it stops before", above=0, only_if=("max_steps", not_)
    )
    learning_rate: float | None = option(
        None,
        "learning rate of Adam, constant; by default a tenth of the pretraining's, and the same with from_scratch",
        above=0,
        high=1,
    )
    warmup_epochs: float = option(0.0, "linear warm-up in epochs", low=0)
    layer_decay: float = option(
        1.0, "each block below the head learns at so many times the rate of the one above", above=0, high=1
    )
    patience: int = option(
        5, "stop after so many validations without a better accuracy", low=1, only_if=("fold_validation", not_)
    )

    eval_steps: int | None = option(
        None, "optimizer steps between validations, each with a checkpoint; by default an epoch", low=1
    )
    save_total_limit: int = option(2, "checkpoints kept, the best one among them", low=1)

    @property
    def save_steps(self) -> int | None:
        """The best checkpoint can only be loaded where every validation has one."""
        return self.eval_steps

    def check(self) -> None:
        """Raises ValueError for options that have no effect beside the others."""
        self.check_images()
        if self.subset_seed is not None and self.labels_per_class is None and self.max_train_images is None:
            raise ValueError("`subset_seed` has no effect without `labels_per_class` or `max_train_images`.")
        if self.augmentation != RESIZED_CROP:
            return
        if self.dataset_name is None or self.streaming:
            raise ValueError(
                "`augmentation: random_resized_crop` reads the images again in every epoch: give `dataset_name`, "
                "without `streaming`."
            )
