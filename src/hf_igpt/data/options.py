"""Options about images and tokens that several commands share."""

import dataclasses
from dataclasses import dataclass
from operator import not_
from typing import TYPE_CHECKING, Any

from hf_igpt.arguments import option
from hf_igpt.token_kinds_igpt import KINDS, LEVELS, PALETTE, RGB, TOKEN_KINDS, VQVAE


if TYPE_CHECKING:
    from hf_igpt.data.sources import ImageSource
    from hf_igpt.image_processing_igpt import IGPTImageProcessor


@dataclass(kw_only=True)
class ImageOptions:
    """Which images, and how they are split."""

    dataset_name: str = option(
        "digits", "'digits' (scikit-learn's), a data set on the Hub, a local folder, or a parquet or tar file or glob"
    )
    dataset_config: str | None = option(None, "configuration of the data set")
    dataset_revision: str | None = option(None, "commit, branch or tag on the Hub")
    image_column: str | None = option(None, "column with the images; found where there is one")
    label_column: str | None = option(None, "column with the class; found where there is one, 'none' for none")
    train_split: str = option("train", "the data set's own name of its training split")
    validation_split: str | None = option(None, "its validation split; found where there is one, 'none' ignores it")
    test_split: str | None = option(None, "its test split; 'test' where there is one")
    validation_fraction: float | None = option(
        None,
        "share of train held out where there is no validation split; by default 0.1",
        above=0,
        high=0.9,
        only_if=("fold_validation", not_),
    )
    test_fraction: float | None = option(
        None, "share of train held out for testing where there is no test split", above=0, high=0.9
    )
    fold_validation: bool = option(False, "train on validation too, after tuning")
    max_images: int | None = option(None, "at most so many images of each split", low=1)
    streaming: bool = option(False, "read images as they come instead of downloading all of them first")
    split_seed: int = option(0, "seed of the splits", low=0)


@dataclass(kw_only=True)
class LabelledImages(ImageOptions):
    """Which images with classes: the tokens of the pretraining, other tokens, or images to tokenize."""

    tokens: str | None = option(
        None,
        "folder that tokenize_dataset or pretrain wrote; by default 'tokens' beside the checkpoint folder",
        only_if=("dataset_name", not_),
    )
    dataset_name: str | None = option(
        None, "instead of tokens, images to tokenize as the checkpoint's were: see pretrain"
    )

    def check_images(self) -> None:
        """Raises ValueError for options about images where none are named, since they would have no effect."""
        if self.dataset_name is not None:
            return
        for field in dataclasses.fields(ImageOptions):
            # Stored tokens have splits, which can be folded too.
            has_effect = field.name in ("dataset_name", "fold_validation")
            if not has_effect and getattr(self, field.name) != field.default:
                raise ValueError(f"`{field.name}` has no effect without `dataset_name`. Give both, or leave it out.")


@dataclass(kw_only=True)
class GridOptions:
    """How an image becomes a grid of tokens."""

    image_size: list[int] = option(
        [32],
        "side, or height and width, that images are brought to, in pixels; the token grid, but for a VQ-VAE's codes",
        low=1,
        high=4096,
    )
    crop_size: int | None = option(
        None,
        "first crop a centre square of so many pixels (the shorter side is brought to it)",
        low=1,
        only_if=("palette", not_),
    )
    num_colors: int = option(
        512,
        "colours of the palette",
        low=2,
        high=4096,
        only_if=(("palette", not_), ("token_kind", PALETTE.__eq__)),
    )


@dataclass(kw_only=True)
class TokenOptions(GridOptions):
    """What the tokens are."""

    token_kind: str = option(
        PALETTE,
        "a palette's colours, one a pixel; the levels of red, green and blue, three a pixel; or a VQ-VAE's codes",
        choices=KINDS,
    )
    vqvae: str | None = option(
        None, "folder or Hub name of the VQ-VAE, see train_vqvae", only_if=("token_kind", VQVAE.__eq__)
    )


@dataclass(frozen=True)
class TokenLayout:
    """
    What a model must know of its tokens; an image processor says the same of its own.

    Args:
        token_kind, num_values, num_channels: as in `IGPTImageProcessor`.
        grid: height and width in cells.
    """

    token_kind: str
    num_values: int
    num_channels: int
    grid: tuple[int, int]


def token_layout(options: TokenOptions) -> TokenLayout | None:
    """
    The layout of tokens that are yet to be made. None for codes where the options name no VQ-VAE.

    Raises:
        ValueError: `image_size` is no multiple of a code's square, or the VQ-VAE has no config.
    """
    kind, size = options.token_kind, grid_size(options)
    if kind != VQVAE:
        num_values = LEVELS if kind == RGB else options.num_colors
        return TokenLayout(kind, num_values, TOKEN_KINDS[kind].num_channels, (size["height"], size["width"]))
    if options.vqvae is None:
        return None
    from hf_igpt.configuration_igpt_vqvae import ImageGPTVQVAEConfig

    try:
        config = ImageGPTVQVAEConfig.from_pretrained(options.vqvae)
    except OSError as error:
        raise ValueError(f"`vqvae`: {options.vqvae} is no VQ-VAE, see train_vqvae: {error}") from error
    return code_layout(options, config.codebook_size, config.downsampling)


def code_layout(options: TokenOptions, codebook_size: int, downsampling: int) -> TokenLayout:
    """The layout of a VQ-VAE's codes. Raises ValueError where `image_size` is no multiple of a code's square."""
    size = grid_size(options)
    sides = (size["height"], size["width"])
    if any(side % downsampling for side in sides):
        raise ValueError(
            f"`image_size` must be a multiple of {downsampling}, the pixels of a code's side, got {sides[0]} x "
            f"{sides[1]}."
        )
    grid = (sides[0] // downsampling, sides[1] // downsampling)
    return TokenLayout(VQVAE, codebook_size, TOKEN_KINDS[VQVAE].num_channels, grid)


def fixed_processor(
    token_kind: str, size: dict[str, int], crop_size: int | None = None, vqvae: str | None = None
) -> "IGPTImageProcessor":
    """
    An image processor for tokens that need no fitting: RGB, or the codes of a VQ-VAE that is trained. A folder with a
    manifest is verified first.

    Raises:
        ValueError: the VQ-VAE's folder is damaged, or as its `from_pretrained`.
    """
    from hf_igpt.image_processing_igpt import IGPTImageProcessor

    model = None
    if token_kind == VQVAE:
        if vqvae is None:
            raise ValueError("`token_kind: vqvae` needs `vqvae`, the folder or Hub name of one, see train_vqvae.")
        from hf_igpt.modeling_igpt_vqvae import ImageGPTVQVAEModel
        from hf_igpt.storage import verify_if_listed

        verify_if_listed(vqvae)
        model = ImageGPTVQVAEModel.from_pretrained(vqvae)
    return IGPTImageProcessor(size=size, token_kind=token_kind, vqvae=model, **crop_fields(crop_size))


def crop_fields(crop_size: int | None) -> dict[str, Any]:
    """A centre crop, or none, as the image processor takes it."""
    return {} if crop_size is None else {"do_center_crop": True, "crop_size": crop_size}


def load_source(options: ImageOptions) -> "ImageSource":
    """The images that the options name."""
    from hf_igpt.data.sources import load_images

    return load_images(
        options.dataset_name,
        options.dataset_config,
        image_column=options.image_column,
        label_column=options.label_column,
        train_split=options.train_split,
        validation_split=options.validation_split,
        test_split=options.test_split,
        validation_fraction=options.validation_fraction,
        test_fraction=options.test_fraction,
        fold_validation=options.fold_validation,
        seed=options.split_seed,
        streaming=options.streaming,
        max_images=options.max_images,
        revision=options.dataset_revision,
    )


def grid_size(options: Any) -> dict[str, int]:
    """Height and width that images are brought to, as the image processor takes them."""
    sides = options.image_size if len(options.image_size) != 1 else options.image_size * 2
    if len(sides) != 2:
        raise ValueError(f"`image_size` must be one side, or height and width, got {options.image_size}.")
    return {"height": sides[0], "width": sides[1]}


def mask_options(options: Any, defaults: dict[str, Any], is_causal: bool, checkpoint: str) -> dict[str, Any]:
    """
    The options of masks named in `defaults`, with these where they are None; nothing for a next-pixel model.

    Raises:
        ValueError: one of them is given for a next-pixel model, which can't use it.
    """
    given = {name: getattr(options, name) for name in defaults if getattr(options, name) is not None}
    if not is_causal:
        return defaults | given
    if given:
        raise ValueError(f"`{min(given)}` has no effect: {checkpoint} is a next-pixel model. Leave it out.")
    return {}
