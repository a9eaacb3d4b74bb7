"""The fields of a recipe for training a VQ-VAE."""

from dataclasses import dataclass
from operator import not_

from hf_igpt.arguments import option
from hf_igpt.configuration_igpt_vqvae import MAX_BLOCKS, MAX_CODES, MAX_WIDTH
from hf_igpt.data.augmentation import AUGMENTATIONS, RESIZED_CROP
from hf_igpt.data.options import ImageOptions
from hf_igpt.training.arguments import StepOptions


@dataclass(kw_only=True)
class TrainVQVAEArguments(StepOptions, ImageOptions):
    """Options of train_vqvae: where to write, which images, which model, how to train, what to log."""

    output_dir: str = option("outputs/vqvae", "folder for everything the run writes")
    seed: int = option(0, "seed of initialisation, data order, augmentation and revived codes", low=0, high=2**31 - 1)
    image_size: list[int] = option(
        [32],
        "side, or height and width, that images are brought to, in pixels; a multiple of downsampling. The model "
        "takes other sizes too",
        low=2,
        high=4096,
    )
    crop_size: int | None = option(
        None, "first crop a centre square of so many pixels (the shorter side is brought to it)", low=1
    )
    augmentation: str = option(
        "flip",
        "drawn anew for every image and epoch: flips, reflection-padded crops, or ImageNet's random resize and crop "
        "of crop_size",
        choices=(*AUGMENTATIONS, RESIZED_CROP),
    )
    augmentation_padding: int = option(
        4,
        "reflection padding of the crops in pixels",
        low=1,
        only_if=("augmentation", ("crop", "crop_flip").__contains__),
    )

    downsampling: int = option(4, "side in pixels of what one code stands for: 2, 4 or 8", low=2, high=8)
    codebook_size: int = option(4096, "codes", low=2, high=MAX_CODES)
    code_size: int = option(64, "numbers in a code's vector", low=1, high=MAX_WIDTH)
    hidden_size: int = option(128, "channels at the resolution of the codes", low=2, high=MAX_WIDTH)
    num_residual_blocks: int = option(
        2, "residual blocks in encoder and decoder each; they widen what a code depends on", low=0, high=MAX_BLOCKS
    )
    residual_size: int = option(64, "channels inside a residual block", low=1, high=MAX_WIDTH)
    commitment_weight: float = option(1.0, "weight of the loss that keeps the encoder near the codes", low=0)
    ema_decay: float = option(0.95, "decay, a step, of the running means that the codes are", low=0, high=0.999999)
    revival_threshold: float = option(
        0.1,
        "a code that is chosen at most this share as often as the average one is replaced by a vector of the step; 0 "
        "replaces none",
        low=0,
        high=1,
    )

    per_device_eval_batch_size: int = option(64, "images at once on one device in validation", low=1)
    num_train_epochs: float = option(10.0, "passes over the training images", above=0, only_if=("max_steps", not_))
    learning_rate: float = option(1e-3, "peak learning rate of Adam", above=0, high=1)
    warmup_epochs: float = option(0.1, "linear warm-up in epochs, then a cosine to zero", low=0)
    eval_steps: int = option(500, "optimizer steps between validations", low=1, only_if=("fold_validation", not_))
    save_steps: int = option(500, "optimizer steps between checkpoints", low=1)
    save_total_limit: int = option(2, "checkpoints kept", low=1)

    def check(self) -> None:
        """Raises ValueError for options of images that would have no effect here, or that training can't have."""
        if self.streaming:
            raise ValueError("`streaming` must be off: images are read again in every epoch.")
        if self.label_column is not None:
            raise ValueError("`label_column` has no effect: a VQ-VAE needs no classes. Leave it out.")
        if self.augmentation == RESIZED_CROP and self.crop_size is None:
            raise ValueError(
                "`augmentation: random_resized_crop` needs `crop_size`, the side of the crops in pixels: that of "
                "`image_size`, or a larger one, which is then reduced to it."
            )
