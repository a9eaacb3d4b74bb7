"""
Pipelines of Image GPT: completing images, and their features.

    pipeline("image-completion", model=folder)(image, rows_kept=4, num_images=3)
    pipeline("igpt-feature-extraction", model=folder)(image, pool=True, layer=6)

Both take whatever the image processor takes (Pillow images, local paths, arrays, tensors), and addresses.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from transformers import ImageFeatureExtractionPipeline, Pipeline
from transformers.image_utils import load_image

from .checks_igpt import check_processor
from .completion_igpt import draw_hidden, image_seeds
from .generation_igpt import check_options
from .image_reading_igpt import to_rgb
from .regions_igpt import prefix_lengths, read_mask, rows_below, token_mask


# What a process without the package runs from a checkpoint's own code, see `custom_pipelines` in the config.
# transformers' image-feature-extraction feeds the backbone the tokens without the start token, and can't pool.
CUSTOM_PIPELINES = {
    "image-completion": {
        "impl": "pipeline_igpt.ImageCompletionPipeline",
        "pt": ["AutoModelForCausalLM", "AutoModelForMaskedImageModeling"],
    },
    "igpt-feature-extraction": {"impl": "pipeline_igpt.ImageGPTFeatureExtractionPipeline", "pt": ["AutoModel"]},
    "image-feature-extraction": {"impl": "pipeline_igpt.ImageGPTFeatureExtractionPipeline", "pt": ["AutoModel"]},
}

SAMPLING_OPTIONS = ("temperature", "top_k", "top_p")
MASKED_OPTIONS = ("num_steps", "order", "schedule", "choice_temperature")

# Of reading images, and what `pipeline()` passes on to every pipeline.
_READING = ("input_data_format", "timeout")
_PASSED_ON = ("local_files_only",)


@dataclass(frozen=True)
class _Numbered:
    """An input with its place among the inputs of a call, which its seed depends on."""

    number: int
    content: Any


class _NumberedDataset(Dataset):
    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> _Numbered:
        return _Numbered(number, self.dataset[number])


class ImageCompletionPipeline(Pipeline):
    """
    Keeps a part of images and draws the rest.

    A next-pixel model keeps an upper part and draws in raster order, a masked model keeps and draws any region. What
    is kept comes back as its tokens show it, at the image processor's size.

    Example:

        completer = pipeline("image-completion", model="outputs/digits/model")
        drawn = completer(["a.png", "b.png"], rows_kept=4, num_images=3, seed=0)  # two lists of three Pillow images
        inpainter = pipeline("image-completion", model="outputs/digits-masked/model")
        drawn = inpainter("a.png", mask="hole.png", num_steps=16)
        drawn = inpainter([{"image": "a.png", "mask": hole}, {"image": "b.png", "rows_kept": 2}])
    """

    _load_processor = False
    _load_image_processor = True
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model: Any, *args: Any, image_processor: Any = None, **kwargs: Any):
        """
        Args:
            model: a next-pixel or masked head.
            image_processor: of the same checkpoint.
            kwargs: as for every pipeline, and options of `__call__`, which become its defaults.

        Raises:
            ValueError: another kind of model or image processor, or the two are not of one checkpoint; or an option is
                unsuitable.
        """
        if not _is_igpt(model) or not hasattr(model, "generate"):
            raise ValueError(
                f"`model` must be a next-pixel or masked head of hf_igpt, got {_full_name(model)}. Checkpoints of "
                "transformers' ImageGPT are read with ImageGPTForCausalImageModeling.from_pretrained and "
                "IGPTImageProcessor.from_pretrained of hf_igpt."
            )
        _check_processor(image_processor, model)
        super().__init__(model, *args, image_processor=image_processor, **kwargs)

    def __call__(self, images: Any, **kwargs: Any) -> list[Any] | Iterator[list[Image.Image]]:
        """
        Completes images.

        Args:
            images: one image or several (a list, a generator, a torch data set, an array with four axes), each as the
                image processor takes it, or an address; or `{"image": ..., "mask": ...}` or
                `{"image": ..., "rows_kept": ...}` for one with a region of its own.
            mask: what is drawn anew: True in an array, not black in a Pillow image or PNG, not zero in an .npy file.
                Either of the size of the token grid, or of the size of the image. In that case a token is drawn anew
                if any pixel under the mask would have a part in its colour, so nothing under the mask is read.
            rows_kept: in place of a mask, rows of the token grid to keep, from 0 to height - 1; by default the upper
                half.
            num_images: completions of each image; by default 1.
            seed: a whole number of at least 0. A completion is a function of the seed, the place of its image among
                the inputs, its own number, and what is kept: the same, up to rounding, whatever the batch size. By
                default drawn from torch's global state, which `transformers.set_seed` sets.
            temperature, top_k, top_p: see the model's `generate()`; by default plain sampling, as in the paper.
            num_steps, order, schedule, choice_temperature: for masked models, see `iterative_decode`; by default one
                pass of the model for every pixel that is drawn.
            batch_size: images at once; the model sees `batch_size * num_images`.
            input_data_format: "channels_last" or "channels_first", for arrays of which both could be true.
            timeout: seconds to wait for an address; by default for ever.
            num_workers: as in every pipeline.

        Returns:
            For one image a list of `num_images` Pillow images of mode RGB and the size of the token grid; for several
            a list of such lists, or for a generator or data set an iterator over them.

        Raises:
            ValueError: an unknown or unsuitable option, or one that this kind of model has no use for; an image that
                can't be read; a mask of another size, or one that hides nothing or that a next-pixel model can't draw.
        """
        if isinstance(images, list | tuple) and not images:
            return []
        if kwargs.get("seed") is None and "seed" not in self._forward_params:
            kwargs["seed"] = int(torch.randint(2**62, ()))
        return super().__call__(_numbered(images), **kwargs)

    def _sanitize_parameters(
        self,
        mask: Any = None,
        rows_kept: int | None = None,
        num_images: int | None = None,
        seed: int | None = None,
        input_data_format: str | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = ("mask", "rows_kept", "num_images", "seed", *SAMPLING_OPTIONS, *MASKED_OPTIONS, *_READING)
        _refuse_unknown(options, known)
        preprocessing = _given(input_data_format=input_data_format, timeout=timeout)
        if mask is not None or rows_kept is not None:
            _refuse_both(mask, rows_kept)
            # Together, for the region of a call takes the place of that given when the pipeline was made.
            preprocessing |= {"mask": mask, "rows_kept": rows_kept}
        drawing = {name: value for name, value in _given(**options).items() if name not in _PASSED_ON}
        self._check_drawing(drawing)
        if num_images is not None:
            if not isinstance(num_images, int) or isinstance(num_images, bool) or num_images < 1:
                raise ValueError(f"`num_images` must be a whole number of at least 1, got {num_images!r}.")
            drawing["num_images"] = num_images
        if seed is not None:
            image_seeds(seed, [], [])
            drawing["seed"] = seed
        return preprocessing, drawing, {}

    def _check_drawing(self, options: dict[str, Any]) -> None:
        useless = [name for name in MASKED_OPTIONS if name in options]
        if useless and self.model.config.is_causal:
            raise ValueError(f"`{useless[0]}` has no effect: this is a next-pixel model. Leave it out.")
        defaults = getattr(self, "_forward_params", {})
        known = {**defaults, **options}
        check_options(**{name: known[name] for name in (*SAMPLING_OPTIONS, *MASKED_OPTIONS) if name in known})

    def preprocess(
        self,
        numbered: _Numbered,
        mask: Any = None,
        rows_kept: int | None = None,
        input_data_format: str | None = None,
        timeout: float | None = None,
    ) -> dict[str, torch.Tensor]:
        try:
            image, mask, rows_kept = _split(numbered.content, mask, rows_kept)
            image = to_rgb(_fetched(image, timeout), input_data_format)
            tokens = self.image_processor(image, return_tensors="pt").input_ids
            hidden = token_mask(self._region(image, mask, rows_kept), self.model.config, 1)
            if self.model.config.is_causal:
                prefix_lengths(hidden)
        except ValueError as error:
            raise ValueError(f"image {numbered.number}: {error}") from error
        return {
            "input_ids": tokens,
            "bool_masked_pos": torch.from_numpy(hidden.copy()),
            "number": torch.tensor([numbered.number]),
        }

    def _region(self, image: Image.Image, mask: Any, rows_kept: int | None) -> np.ndarray:
        """What is drawn, bool of the token grid's shape."""
        grid = self.image_processor.grid
        if mask is None:
            return rows_below(grid[0] // 2 if rows_kept is None else rows_kept, grid)
        region = read_mask(mask)
        if region.shape == (image.height, image.width) and region.shape != grid:
            region = self.image_processor.fit_mask(region)
        if region.shape != grid:
            raise ValueError(
                f"`mask` must be of the size of the token grid, {grid[0]} high and {grid[1]} wide, or of the image, "
                f"{image.height} high and {image.width} wide, got {region.shape[0]} high and {region.shape[1]} wide."
            )
        if not region.any():
            raise ValueError("`mask` hides nothing: make it True, or not black, where pixels are to be drawn.")
        return region

    def _forward(
        self, model_inputs: dict[str, torch.Tensor], seed: int, num_images: int = 1, **drawing: Any
    ) -> dict[str, torch.Tensor]:
        if "temperature" in drawing:
            drawing["temperature"] = float(drawing["temperature"])
        numbers = model_inputs["number"].tolist()
        pairs = list(itertools.product(numbers, range(num_images)))
        drawn = draw_hidden(
            self.model,
            model_inputs["input_ids"].repeat_interleave(num_images, dim=0),
            model_inputs["bool_masked_pos"].repeat_interleave(num_images, dim=0),
            image_seeds(seed, *zip(*pairs, strict=True)),
            **drawing,
        )
        return {"tokens": drawn.view(len(numbers), num_images, -1)}

    def postprocess(self, model_outputs: dict[str, torch.Tensor]) -> list[Image.Image]:
        return self.image_processor.decode(model_outputs["tokens"][0])


class ImageGPTFeatureExtractionPipeline(ImageFeatureExtractionPipeline):
    """
    Features of images from any layer, of an input as in pretraining (with the start token in front for next-pixel
    models): with `pool=True` those of the model's `pooled_features`, without those of its backbone's `features`.

    It takes the place of transformers' image-feature-extraction, and answers in the same form.
    """

    _load_video_processor = False

    def __init__(self, model: Any, *args: Any, image_processor: Any = None, **kwargs: Any):
        """
        Args:
            model: a backbone or any head.
            image_processor: of the same checkpoint.
            kwargs: as for every pipeline, and options of `__call__`, which become its defaults.

        Raises:
            ValueError: another kind of model or image processor, or the two are not of one checkpoint; or an option is
                unsuitable.
        """
        if not _is_igpt(model):
            raise ValueError(f"`model` must be an Image GPT of hf_igpt, got {_full_name(model)}.")
        _check_processor(image_processor, model)
        super().__init__(model, *args, image_processor=image_processor, **kwargs)

    def __call__(self, images: Any, **kwargs: Any) -> list[Any] | torch.Tensor | Iterator[Any]:
        """
        Features of images.

        Args:
            images: one image or several (a list, a generator, a torch data set, an array with four axes), each as the
                image processor takes it, or an address.
            pool: True for the mean over positions; by default False.
            layer: 0 (the normed embeddings) to `num_hidden_layers` (the final norm); by default the config's
                `pooler_layer`, or the final norm where that is not set.
            return_tensors: True for torch tensors; by default nested lists.
            input_data_format: "channels_last" or "channels_first", for arrays of which both could be true.
            timeout, batch_size, num_workers: as in every pipeline.

        Returns:
            For each image its features, of shape (1, C) with `pool=True`, else (1, T, C), position after position in
            raster order.

        Raises:
            ValueError: an unknown or unsuitable option, or an image that can't be read.
        """
        return super().__call__(list(images) if _is_stack(images) else images, **kwargs)

    def _sanitize_parameters(
        self,
        pool: bool | None = None,
        layer: int | None = None,
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        _refuse_unknown(kwargs, ("pool", "layer", "image_processor_kwargs", "return_tensors", *_READING))
        preprocessing, _, postprocessing = super()._sanitize_parameters(**kwargs)
        return (
            preprocessing | _given(input_data_format=input_data_format),
            _given(pool=pool, layer=layer),
            postprocessing,
        )

    def preprocess(self, image: Any, timeout: float | None = None, **image_processor_kwargs: Any) -> Any:
        return self.image_processor(_fetched(image, timeout), return_tensors="pt", **image_processor_kwargs)

    def _forward(self, model_inputs: Any, pool: bool = False, layer: int | None = None) -> dict[str, torch.Tensor]:
        backbone = self.model.base_model
        features: Callable = backbone.pooled_features if pool else backbone.features
        return {"features": features(model_inputs["input_ids"], layer)}

    def postprocess(self, model_outputs: dict[str, torch.Tensor], return_tensors: bool = False) -> Any:
        features = model_outputs["features"]
        return features if return_tensors else features.tolist()


def _is_igpt(model: Any) -> bool:
    # By name: a checkpoint's own code has classes of its own.
    return getattr(getattr(model, "config", None), "model_type", None) == "igpt"


def _full_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__name__}"


def _check_processor(image_processor: Any, model: Any) -> None:
    if not hasattr(image_processor, "palette"):
        raise ValueError(
            "`image_processor` must be the IGPTImageProcessor that belongs to the model, got "
            f"{type(image_processor).__name__}."
        )
    check_processor(image_processor, model.config)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _refuse_unknown(options: dict[str, Any], known: tuple[str, ...]) -> None:
    unknown = [name for name in options if name not in (*known, *_PASSED_ON)]
    if unknown:
        raise ValueError(f"Unknown option {unknown[0]!r}. Options: {', '.join(known)}, batch_size, num_workers.")


def _refuse_both(mask: Any, rows_kept: int | None) -> None:
    if mask is not None and rows_kept is not None:
        raise ValueError("`mask` and `rows_kept` both say what is drawn: give one of them.")


def _numbered(images: Any) -> Any:
    """The inputs of a call with their places, in a container that transformers treats like the one given."""
    if isinstance(images, list) or _is_stack(images):
        return list(_enumerated(images))
    if isinstance(images, Dataset) and not isinstance(images, IterableDataset):
        return _NumberedDataset(images)
    if isinstance(images, IterableDataset | Iterator):
        return _enumerated(images)
    return _Numbered(0, images)


def _is_stack(images: Any) -> bool:
    """Several images in something that transformers would take for one."""
    return isinstance(images, tuple) or getattr(images, "ndim", 0) == 4


def _enumerated(images: Iterable[Any]) -> Iterator[_Numbered]:
    return (_Numbered(number, image) for number, image in enumerate(images))


def _split(content: Any, mask: Any, rows_kept: int | None) -> tuple[Any, Any, int | None]:
    """Image and region of one input; its own region takes the place of the call's."""
    if not isinstance(content, dict):
        return content, mask, rows_kept
    unknown = sorted(set(content) - {"image", "mask", "rows_kept"})
    if unknown or content.get("image") is None:
        raise ValueError(
            "An input that is a dictionary must have `image`, and may have `mask` or `rows_kept`, got "
            f"{', '.join(map(repr, content)) or 'nothing'}."
        )
    own_mask, own_rows = content.get("mask"), content.get("rows_kept")
    _refuse_both(own_mask, own_rows)
    if own_mask is not None or own_rows is not None:
        mask, rows_kept = own_mask, own_rows
    return content["image"], mask, rows_kept


def _fetched(image: Any, timeout: float | None) -> Any:
    """The image behind an address, as in every pipeline of transformers; anything else as it is."""
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        return load_image(image, timeout=timeout)
    return image


__all__ = ["CUSTOM_PIPELINES", "ImageCompletionPipeline", "ImageGPTFeatureExtractionPipeline"]
