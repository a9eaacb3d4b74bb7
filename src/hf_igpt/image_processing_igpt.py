"""Image processor of Image GPT: images to tokens and back."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME

from .config_files_igpt import named_errors, place_of, refuse_large
from .image_reading_igpt import MAX_IMAGE_PIXELS, array_to_rgb, open_image, to_rgb
from .palette_igpt import palette_from_clusters
from .saving_igpt import save_over
from .token_kinds_igpt import KINDS, PALETTE, VQVAE, CodeTokens, PaletteTokens, RGBTokens, TokenKind, describe_tokens


MAX_SIDE = 4096  # of the grid and of the crop: a damaged config must not take all memory

_FILE = IMAGE_PROCESSOR_NAME
_BLOCK_IMAGES = 64
_FIELDS = ("token_kind", "size", "palette", "do_resize", "do_center_crop", "crop_size", "resample")
_VQVAE_FOLDER = "vqvae"  # in the folder of a saved processor
_CODES_HASH = "codes_hash"
# What a saved config holds besides the fields, and what loading passes along with a user's keywords.
_SERVICE_KEYS = {"image_processor_type", "feature_extractor_type", "processor_class", "auto_map"}
_HUB_KEYS = ("subfolder", "revision", "token", "cache_dir", "force_download", "local_files_only", "proxies")
_LOADING_KEYS = {"trust_remote_code", "code_revision", "proxies", "dtype"}  # the last from `pipeline`, for its model
# transformers' ImageGPT processor always maps 0...255 to [-1, 1] and then to the nearest cluster; 127.5 * (c + 1) says
# the same in 0...255. Its options are accepted where they ask for just that.
_NATIVE_OPTIONS = {
    "do_color_quantize": (True,),
    "do_convert_rgb": (True,),
    "do_rescale": (True,),
    "rescale_factor": (1 / 255,),
    "do_normalize": (True,),
    "image_mean": (0.5, [0.5, 0.5, 0.5]),
    "image_std": (0.5, [0.5, 0.5, 0.5]),
    "do_pad": (False,),
    "default_to_square": (True,),
    "data_format": ("channels_first",),
}


class IGPTImageProcessor(BaseImageProcessor):
    """Turns images into tokens in raster order, and tokens into images.

    Every image is converted to upright 8-bit RGB (see `to_rgb`), brought to `size` and turned into tokens of one of
    three kinds:

    - "palette", the paper's: a token for a pixel, the index of the nearest colour. Exactly: the float64 argmin of the
      squared RGB distance, the lowest index among equals.
    - "rgb": three tokens for a pixel, its levels of red, green and blue; nothing is lost.
    - "vqvae": a token for a square of pixels, the code that a VQ-VAE gives it.

    An image gives the same tokens alone and in a batch (codes: up to rounding in the VQ-VAE). With `do_center_crop` it
    is first resized so that its shorter side fills `crop_size`, then cropped there in the middle, then resized to
    `size`. The paper's evaluation (shorter side 224, centre crop 224 x 224, then the model's resolution) is
    `do_center_crop=True, crop_size=224`.

    Args:
        size: `{"height": 32, "width": 32}` or one number for both. Pixels, at most 4096 a side. It is the token grid
            too, but for a VQ-VAE's, which is smaller by its downsampling.
        palette: RGB colours of shape (colours, 3) in 0...255, or None until one is fitted
            (`hf_igpt.data.fit_palette`). Only with the kind "palette".
        do_resize: whether to resize. With False every image must have the right size already.
        do_center_crop: whether to crop to the middle first; without it the aspect ratio gives way to `size`.
        crop_size: size of the centre crop, as `size`; None means `size`. Only with `do_center_crop`.
        resample: Pillow's resampling filter by number; 2, bilinear with antialiasing, is that of transformers'
            ImageGPT (the paper names none).
        token_kind: "palette", "rgb" or "vqvae".
        vqvae: the `ImageGPTVQVAEModel` that makes the codes. Only with the kind "vqvae", which needs it. It is saved
            with the processor, in the folder `vqvae`.
        kwargs: `clusters`, the colours of transformers' ImageGPT in [-1, 1], in place of `palette`, and the other
            fields of its config, each of which must have the value that its checkpoints have.

    Raises:
        ValueError: if a value is unsuitable, or a keyword is unknown.
    """

    model_input_names = ["input_ids"]
    _auto_class = "AutoImageProcessor"

    def __init__(
        self,
        size: dict[str, int] | int | None = None,
        palette: Any = None,
        do_resize: bool = True,
        do_center_crop: bool = False,
        crop_size: dict[str, int] | int | None = None,
        resample: int = Image.Resampling.BILINEAR,
        token_kind: str = PALETTE,
        vqvae: Any = None,
        **kwargs,
    ):
        super().__init__()
        clusters = _check_native_options(kwargs)
        if clusters is not None:
            if palette is not None:
                raise ValueError("`palette` and `clusters` are the same thing in two scales: give one of them.")
            palette = palette_from_clusters(clusters)
        self.size = _as_size(32 if size is None else size, "size")
        self.do_resize = _as_bool(do_resize, "do_resize")
        self.do_center_crop = _as_bool(do_center_crop, "do_center_crop")
        if crop_size is not None and not do_center_crop:
            raise ValueError(f"`crop_size`={crop_size} needs `do_center_crop=True`.")
        self.crop_size = None if crop_size is None else _as_size(crop_size, "crop_size")
        self.resample = _as_resample(resample)
        self._kind = _as_kind(token_kind, palette, vqvae)
        # Our own string: one that was read from a file would be another object, and pickles would differ.
        self.token_kind = KINDS[KINDS.index(token_kind)]
        cell, sides = self.cell_size, (self.size["height"], self.size["width"])
        if any(side % cell for side in sides):
            raise ValueError(
                f"`size` must be multiples of {cell} pixels, of which the VQ-VAE makes one code, got "
                f"{sides[0]} x {sides[1]}."
            )

    @property
    def palette(self) -> np.ndarray | None:
        """
        The colours, a read-only float64 array of shape (colours, 3), RGB in 0...255; None before they are fitted, and
        for other kinds of tokens.
        """
        return getattr(self._kind, "palette", None)

    @property
    def clusters(self) -> np.ndarray | None:
        """The palette as transformers' ImageGPT has it, in [-1, 1]."""
        return None if self.palette is None else self.palette / 127.5 - 1.0

    @property
    def vqvae(self) -> Any:
        """The VQ-VAE of codes; None for other kinds of tokens."""
        return getattr(self._kind, "vqvae", None)

    @property
    def palette_hash(self) -> str:
        """The `token_hash` of a palette. Raises ValueError for other kinds of tokens."""
        self._require_palette()
        return self.token_hash

    @property
    def num_colors(self) -> int:
        """The number of colours of a palette. Raises ValueError for other kinds of tokens."""
        self._require_palette()
        return self.num_values

    @property
    def token_hash(self) -> str:
        """Short hash of what tokens mean: data, processors and checkpoints that belong together agree on it."""
        return self._tokens().token_hash

    @property
    def num_values(self) -> int:
        """The number of values that a token can have."""
        return self._tokens().num_values

    @property
    def num_channels(self) -> int:
        """Tokens of a cell of the grid: 3 for RGB, otherwise 1."""
        return 1 if self._kind is None else self._kind.num_channels

    @property
    def cell_size(self) -> int:
        """Pixels of the side of a cell of the grid: 1, but for a VQ-VAE's codes."""
        return 1 if self._kind is None else self._kind.cell_size

    @property
    def description(self) -> str:
        """What the tokens are, for people, such as "512 colours"."""
        return describe_tokens(self.token_kind, self.num_values)

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of the token grid, in cells."""
        return self.size["height"] // self.cell_size, self.size["width"] // self.cell_size

    @property
    def num_tokens(self) -> int:
        """Tokens of an image."""
        height, width = self.grid
        return height * width * self.num_channels

    def with_size(
        self, size: dict[str, int] | int, do_center_crop: bool = False, crop_size: dict[str, int] | int | None = None
    ) -> "IGPTImageProcessor":
        """A processor with the same tokens and filter for another size. Raises ValueError as the class."""
        return type(self)(
            size=size,
            palette=self.palette,
            do_center_crop=do_center_crop,
            crop_size=crop_size,
            resample=self.resample,
            token_kind=self.token_kind,
            vqvae=self.vqvae,
        )

    def preprocess(
        self, images: Any, return_tensors: str | None = None, input_data_format: str | None = None, **kwargs
    ) -> BatchFeature:
        """Turn images into tokens; what calling the processor does.

        Args:
            images: one image or a list of them, each a Pillow image, a local path, the bytes of an image file, a NumPy
                array or a torch tensor (see `to_rgb`); or one array or tensor with four axes, a batch.
            return_tensors: "pt" for torch, "np" or None for NumPy.
            input_data_format: "channels_last" or "channels_first", for arrays of which both could be true.

        Returns:
            BatchFeature with `input_ids`, int64 of shape (batch, tokens), without the start token.

        Raises:
            ValueError: if an image is unsuitable (says which and why), no palette is set or a keyword is unknown.
        """
        if kwargs:
            raise ValueError(
                f"unknown keyword {min(kwargs)!r}: a call takes `return_tensors` and `input_data_format`. "
                "Sizes, crop, filter and palette belong to the processor; build another one for other values."
            )
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f'`return_tensors` must be "pt", "np" or None, got {return_tensors!r}.')
        self._tokens()
        images, input_data_format = _as_sequence(images, input_data_format)
        tokens = np.empty((len(images), self.num_tokens), dtype=np.int64)
        for block, pixels in self._pixel_blocks(images, input_data_format):
            tokens[block] = self.quantize(pixels)
        return BatchFeature({"input_ids": tokens}, tensor_type=return_tensors)

    def pixels(self, images: Any, input_data_format: str | None = None) -> np.ndarray:
        """The first half of a call: RGB pixels at the processor's size, uint8 of shape (batch, height, width, 3)."""
        images, input_data_format = _as_sequence(images, input_data_format)
        pixels = np.empty((len(images), *self._sides, 3), dtype=np.uint8)
        for block, block_pixels in self._pixel_blocks(images, input_data_format):
            pixels[block] = block_pixels
        return pixels

    def _pixel_blocks(self, images: Any, input_data_format: str | None) -> Iterator[tuple[slice, np.ndarray]]:
        """Pixels of a few images at a time, so that a large batch needs little memory besides its result."""
        as_they_are = isinstance(images, np.ndarray) and images.shape[1:3] == self._sides and not self.do_center_crop
        for start in range(0, len(images), _BLOCK_IMAGES):
            block = slice(start, min(start + _BLOCK_IMAGES, len(images)))
            yield block, images[block] if as_they_are else self._read_block(images, block, input_data_format)

    def _read_block(self, images: Any, block: slice, input_data_format: str | None) -> np.ndarray:
        # Pasting into one tall image and reading that costs a third of reading every image by itself.
        height, width = self._sides
        count = block.stop - block.start
        column = Image.new("RGB", (width, height * count))
        for row, number in enumerate(range(block.start, block.stop)):
            image = images[number]
            if not self._is_ready(image):
                try:
                    image = self._fit(to_rgb(image, input_data_format))
                except ValueError as error:
                    raise ValueError(f"images[{number}]: {error}" if len(images) > 1 else str(error)) from error
            column.paste(image, (0, row * height))
        return np.asarray(column).reshape(count, height, width, 3)

    def _is_ready(self, image: Any) -> bool:
        """Whether conversion and resizing would give back the same pixels: a shortcut for large batches."""
        return (
            type(image) is Image.Image  # files may be unread, and have their orientation elsewhere than in `info`
            and image.mode == "RGB"
            and not image.info
            and image.size == (self.size["width"], self.size["height"])
            and not self.do_center_crop
        )

    @property
    def _sides(self) -> tuple[int, int]:
        return self.size["height"], self.size["width"]

    def _fit(self, image: Image.Image) -> Image.Image:
        """Bring one RGB image to the processor's size."""
        target = (self.size["width"], self.size["height"])
        if self.do_center_crop:
            image = self._center_crop(image)
        if image.size == target:
            return image
        if not self.do_resize:
            raise ValueError(
                f"with `do_resize=False` an image must come out {target[0]} wide and {target[1]} high, "
                f"got {image.width} x {image.height}."
            )
        return image.resize(target, self.resample)

    def _center_crop(self, image: Image.Image) -> Image.Image:
        size = self.crop_size or self.size
        width, height = size["width"], size["height"]
        if self.do_resize:
            scale = max(width / image.width, height / image.height)
            # The longer side is cut to a whole number of pixels, as torchvision's Resize does.
            filled = max(width, int(image.width * scale)), max(height, int(image.height * scale))
            if filled[0] * filled[1] > MAX_IMAGE_PIXELS:
                raise ValueError(
                    f"an image of {image.width} x {image.height} is too long and narrow for a centre crop: with the "
                    f"shorter side at the crop's it has {filled[0]} x {filled[1]} pixels."
                )
            if filled != image.size:
                image = image.resize(filled, self.resample)
        if image.width < width or image.height < height:
            raise ValueError(
                f"an image of {image.width} x {image.height} is smaller than the centre crop {width} x {height}."
            )
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def quantize(self, pixels: np.ndarray) -> np.ndarray:
        """The second half of a call: tokens, integers of shape (batch, tokens), of such pixels."""
        kind, (height, width) = self._tokens(), self._sides
        if np.shape(pixels)[1:] != (height, width, 3):
            raise ValueError(f"`pixels` must have the shape (batch, {height}, {width}, 3), got {np.shape(pixels)}.")
        return kind.encode(pixels)

    def fit_mask(self, mask: np.ndarray) -> np.ndarray:
        """Bring a mask over an image's pixels to the token grid, the way the image itself is cropped and resized.

        Args:
            mask: bool of shape (image height, image width), of the upright image.

        Returns:
            bool array of the grid's shape: True for every cell whose tokens a True pixel has a part in (of a VQ-VAE's
            codes: in whose own square of pixels it has one).

        Raises:
            ValueError: if an image of that size is unsuitable.
        """
        image = Image.fromarray(np.asarray(mask, dtype=np.float32))
        (height, width), cell = self.grid, self.cell_size
        return (np.asarray(self._fit(image)) != 0).reshape(height, cell, width, cell).any(axis=(1, 3))

    def decode(self, tokens: Any) -> list[Image.Image]:
        """Turn tokens into RGB images: palette colours rounded to whole levels, codes as the VQ-VAE paints them.

        Args:
            tokens: integers of shape (batch, tokens) or (tokens,), as list, array or tensor, without the start token.

        Raises:
            ValueError: if the shape is wrong, or a token has no meaning; gives value, position, limits.
        """
        return [Image.fromarray(image) for image in self.decode_pixels(tokens)]

    def decode_pixels(self, tokens: Any) -> np.ndarray:
        """As `decode`, as one uint8 array of shape (batch, height, width, 3)."""
        kind, (height, width) = self._tokens(), self.grid
        ids = _as_integers(tokens)
        if ids.ndim not in (1, 2) or ids.shape[-1] != self.num_tokens:
            raise ValueError(
                f"`tokens` must have the shape (batch, {self.num_tokens}) or ({self.num_tokens},) for the grid "
                f"{height} x {width}, got {ids.shape}."
            )
        wrong = (ids < 0) | (ids >= kind.num_values)
        if wrong.any():
            position = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(
                f"`tokens` must be in 0...{kind.num_values - 1}, got {ids[position]} at position {position}. "
                "The start token is no part of an image: cut it off first."
            )
        return kind.decode(ids.reshape(-1, self.num_tokens), self.grid)

    def _tokens(self) -> TokenKind:
        if self._kind is None:
            raise ValueError("this processor has no `palette` yet: fit one with `hf_igpt.data.fit_palette`.")
        return self._kind

    def _require_palette(self) -> None:
        if self.token_kind != PALETTE:
            raise ValueError(f"this processor has no palette: its tokens are of the kind {self.token_kind!r}.")
        self._tokens()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any):
        """
        As in transformers, with the VQ-VAE where there is one; a ValueError names the checkpoint too. Raises OSError
        where the VQ-VAE is missing.
        """
        with named_errors(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers, for files of at most 16 MiB."""
        folder = os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        for name in (_FILE, PROCESSOR_NAME):
            refuse_large(os.path.join(folder, name))
        hub_options = {key: kwargs[key] for key in _HUB_KEYS if key in kwargs}
        config, kwargs = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        if isinstance(config, dict) and config.get("token_kind") == VQVAE and "vqvae" not in kwargs:
            config = config | {"vqvae": _load_vqvae(pretrained_model_name_or_path, hub_options)}
        return config, kwargs

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs) -> "IGPTImageProcessor":
        """Build a processor from a saved config; keywords override its fields, an unknown one is a ValueError."""
        if not isinstance(image_processor_dict, dict):
            raise ValueError(
                f"preprocessor_config.json must hold a JSON object, got {type(image_processor_dict).__name__}."
            )
        return_unused_kwargs = kwargs.pop("return_unused_kwargs", False)
        config = {key: value for key, value in image_processor_dict.items() if key not in _SERVICE_KEYS}
        overrides = {key: value for key, value in kwargs.items() if key in (*_FIELDS, "clusters", "vqvae")}
        if overrides.keys() & {"palette", "clusters", "token_kind", "vqvae"}:
            config = {key: value for key, value in config.items() if key not in ("palette", "clusters", "vqvae")}
        codes_hash = config.pop(_CODES_HASH, None)
        unused = {key: value for key, value in kwargs.items() if key not in overrides}
        processor = cls(**{**config, **overrides})
        if "vqvae" in config and processor.token_hash != codes_hash:
            raise ValueError(
                f"the VQ-VAE in the folder {_VQVAE_FOLDER} is not the one that the processor was saved with: its hash "
                f"is {processor.token_hash}, not {codes_hash}. Tokens would mean something else."
            )
        if return_unused_kwargs:
            return processor, unused
        unknown = {key for key in unused if key not in _LOADING_KEYS and not key.startswith("_")}
        if unknown:
            raise ValueError(f"unknown keyword {min(unknown)!r}: known ones are {', '.join(_FIELDS)}.")
        return processor

    @property
    def auto_map(self) -> dict[str, str]:
        """What a process without the package loads from a saved folder's own code."""
        return {"AutoImageProcessor": f"image_processing_igpt.{type(self).__name__}"}

    def to_dict(self) -> dict[str, Any]:
        """The config as it is saved: plain JSON values, the palette as a list of rows."""
        config = {name: getattr(self, name) for name in _FIELDS}
        config["palette"] = None if self.palette is None else self.palette.tolist()
        if self.vqvae is not None:
            config[_CODES_HASH] = self.token_hash
        config["image_processor_type"] = type(self).__name__
        config["auto_map"] = self.auto_map
        return config

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """
        As in transformers, with the VQ-VAE in the folder `vqvae` where there is one. A kill leaves the old processor
        or the new one; over one with another VQ-VAE also none, never a mixture.
        """
        save = super().save_pretrained

        def save_whole(folder: str | os.PathLike) -> None:
            if self.vqvae is not None:
                self.vqvae.save_pretrained(os.path.join(folder, _VQVAE_FOLDER))
            save(folder, push_to_hub, **kwargs)

        has_old = self.vqvae is None and _has_vqvae(save_directory)
        obsolete = [_VQVAE_FOLDER] if has_old else []
        save_over(save_whole, save_directory, re.compile(re.escape(_FILE)), obsolete)
        return [os.path.join(save_directory, _FILE)]

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, *args, **kwargs):
        # The VQ-VAE was written before transformers took the times by which it finds what to upload.
        times = {name: time for name, time in files_timestamps.items() if name != _VQVAE_FOLDER or self.vqvae is None}
        return super()._upload_modified_files(working_dir, repo_id, times, *args, **kwargs)

    def __repr__(self) -> str:
        tokens = "None" if self._kind is None else f"<{self.description}, hash {self.token_hash}>"
        fields = {name: tokens if name == "palette" else repr(getattr(self, name)) for name in _FIELDS}
        if self.token_kind != PALETTE:
            fields = {"tokens" if name == "palette" else name: text for name, text in fields.items()}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in fields.items())})"


def _as_kind(token_kind: str, palette: Any, vqvae: Any) -> TokenKind | None:
    """What makes the tokens; None for a palette that isn't fitted yet."""
    if token_kind not in KINDS:
        raise ValueError(f"`token_kind` must be one of {', '.join(KINDS)}, got {token_kind!r}.")
    for name, value, kind in (("palette", palette, PALETTE), ("vqvae", vqvae, VQVAE)):
        if value is not None and token_kind != kind:
            raise ValueError(f"`{name}` is for the kind {kind!r} of tokens, but `token_kind` is {token_kind!r}.")
    if token_kind == VQVAE:
        if not hasattr(vqvae, "codes_hash"):
            raise ValueError(
                "`token_kind` 'vqvae' needs `vqvae`, an `ImageGPTVQVAEModel` (in the package `hf-igpt train_vqvae` "
                f"makes one), got {type(vqvae).__name__}."
            )
        return CodeTokens(vqvae)
    if token_kind == PALETTE:
        return None if palette is None else PaletteTokens(palette)
    return RGBTokens()


def _has_vqvae(folder: str | os.PathLike) -> bool:
    """Whether a processor with codes was saved there. A folder of that name beside another may be anyone's."""
    try:
        with open(os.path.join(folder, _FILE), encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, RecursionError, ValueError):
        return False
    is_of_codes = isinstance(config, dict) and config.get("token_kind") == VQVAE
    return is_of_codes and os.path.isdir(os.path.join(folder, _VQVAE_FOLDER))


def _load_vqvae(name_or_path: str | os.PathLike, hub_options: dict[str, Any]) -> Any:
    from .modeling_igpt_vqvae import ImageGPTVQVAEModel

    inner = os.path.join(hub_options.pop("subfolder", None) or "", _VQVAE_FOLDER)
    try:
        return ImageGPTVQVAEModel.from_pretrained(name_or_path, subfolder=inner, **hub_options)
    except OSError as error:
        place = place_of(name_or_path, inner)
        raise OSError(
            f"{place}, the VQ-VAE that makes the image processor's tokens, can't be read: {error} Save the processor "
            "again, or take the folder whole."
        ) from error


def _check_native_options(options: dict[str, Any]) -> Any:
    """Take `clusters` out of the extra keywords; refuse the others unless they ask for what this processor does."""
    clusters = None
    for name, value in options.items():
        if name == "clusters":
            clusters = value
        elif name in _SERVICE_KEYS or value is None:
            continue
        elif name not in _NATIVE_OPTIONS:
            raise ValueError(f"unknown keyword {name!r}: known ones are {', '.join(_FIELDS)}, clusters.")
        elif (list(value) if isinstance(value, tuple) else value) not in _NATIVE_OPTIONS[name]:
            raise ValueError(f"`{name}` can only be {_NATIVE_OPTIONS[name][0]!r} here, got {value!r}.")
    return clusters


def _as_size(size: Any, name: str) -> dict[str, int]:
    if hasattr(size, "keys"):
        if set(size.keys()) != {"height", "width"}:
            raise ValueError(f'`{name}` must have "height" and "width" and nothing else, got {dict(size)}.')
        sides = [size["height"], size["width"]]
    else:
        sides = list(size) if isinstance(size, (list, tuple)) else [size, size]
    if len(sides) != 2 or not all(_is_integer(side) and 1 <= side <= MAX_SIDE for side in sides):
        raise ValueError(f"`{name}` must be a height and a width, whole numbers from 1 to {MAX_SIDE}, got {size!r}.")
    return {"height": int(sides[0]), "width": int(sides[1])}


def _as_bool(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be true or false, got {value!r}.")
    return value


def _as_resample(resample: Any) -> int:
    known = {int(filter_): filter_.name.lower() for filter_ in Image.Resampling}
    if not _is_integer(resample) or int(resample) not in known:
        choices = ", ".join(f"{number} ({name})" for number, name in sorted(known.items()))
        raise ValueError(f"`resample` must be one of Pillow's filters {choices}, got {resample!r}.")
    return int(resample)


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _as_sequence(images: Any, input_data_format: str | None) -> tuple[Any, str | None]:
    """A list of images, or one RGB batch with the channels last; and the layout that its arrays now have."""
    if isinstance(images, np.ndarray) or hasattr(images, "detach"):
        batch = array_to_rgb(images, input_data_format)
        return batch if batch.ndim == 4 else batch[None], "channels_last"
    if not isinstance(images, (list, tuple)):
        images = [images]
    if not images:
        raise ValueError("`images` is empty: give at least one image.")
    return images, input_data_format


def _as_integers(tokens: Any) -> np.ndarray:
    try:
        ids = tokens.detach().cpu().numpy() if hasattr(tokens, "detach") else np.asarray(tokens)
    except ValueError as error:
        raise ValueError("`tokens` must be rows of equal length.") from error
    if ids.dtype.kind not in "iu":
        raise ValueError(f"`tokens` must be integers, got values of type {ids.dtype}.")
    return ids


__all__ = ["IGPTImageProcessor", "open_image", "to_rgb"]
