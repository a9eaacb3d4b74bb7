"""Training batches of tokens, each a function of (seed, epoch, image index).

Data sets here take integer keys `epoch * number_of_images + image`. The key carries the epoch to whoever makes the
example, so nothing has to be told which epoch it is: workers that stay alive, other processes and a resumed run all
make the same example from the same key. `EpochSampler` deals the keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from hf_igpt.data.augmentation import augmented_positions, check_augmentation, random_resized_crop
from hf_igpt.data.columns import find_image_column, find_label_column, read_image, row_file
from hf_igpt.data.masking import Masking
from hf_igpt.data.randomness import random_permutation


if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image as PILImage


class KeyedDataset(TorchDataset):
    """
    Examples by key. Subclasses make the examples of a batch in `_examples`; each gets the two parts of its key,
    "epoch" and "image", so that a collator can draw as a function of them too.
    """

    def __init__(self, num_images: int, what: str):
        if num_images < 1:
            raise ValueError(f"`{what}` must hold at least one image, got none.")
        self.num_images = num_images

    def __len__(self) -> int:
        """The number of images, the length of one epoch."""
        return self.num_images

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The images of epoch 0 in order. Keys have no end, so iteration can't stop at the first one missing."""
        return (self[key] for key in range(self.num_images))

    def __getitem__(self, key: int) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
        keys = np.asarray(keys, dtype=np.int64)
        if keys.size and keys.min() < 0:
            raise IndexError(f"A key is epoch * {self.num_images} + image, got {keys.min()}.")
        epochs, images = np.divmod(keys, self.num_images)
        examples = self._examples(epochs, images)
        for example, epoch, image in zip(examples, epochs.tolist(), images.tolist(), strict=True):
            example |= {"epoch": epoch, "image": image}
        return examples

    def _examples(self, epochs: np.ndarray, images: np.ndarray) -> list[dict[str, Any]]:
        raise NotImplementedError


class TokenDataset(KeyedDataset):
    """Stored tokens, augmented as they are read.

    An example is {"input_ids": unsigned integer array of shape (tokens,), in raster order without the start token,
    "label": int where the tokens have classes, "epoch" and "image": the parts of its key}.

    Args:
        tokens: A split made by `tokenize`.
        num_values: Number of token values.
        grid: Height and width in cells.
        num_channels: Tokens per cell.
        augment: One of `hf_igpt.data.augmentation.AUGMENTATIONS`.
        seed: Seed of the augmentation.
        padding: Cells of reflection padding of the crops.

    Raises:
        ValueError: If there is no image, the rows have another length than the grid, or the augmentation doesn't fit.
    """

    def __init__(
        self,
        tokens: "Dataset",
        *,
        num_values: int,
        grid: tuple[int, int],
        num_channels: int = 1,
        augment: str = "none",
        seed: int = 0,
        padding: int = 4,
    ):
        super().__init__(len(tokens), "tokens")
        check_augmentation(augment, grid, padding)
        self.num_values = num_values
        self.grid = (int(grid[0]), int(grid[1]))
        self.num_channels = num_channels
        self.num_tokens = self.grid[0] * self.grid[1] * num_channels
        self.augment, self.seed, self.padding = augment, seed, padding
        if "input_ids" not in tokens.column_names:
            raise ValueError(f"`tokens` has no column 'input_ids', only {', '.join(tokens.column_names)}.")
        stored = getattr(tokens.features["input_ids"], "length", -1)
        if stored != self.num_tokens:
            raise ValueError(
                f"`tokens` must hold {self.num_tokens} tokens a row for a grid of {grid[0]}x{grid[1]} with "
                f"{num_channels} tokens a cell, got a fixed length of {stored}; tokenize for this grid."
            )
        columns = [name for name in ("input_ids", "label") if name in tokens.column_names]
        self.tokens = tokens.select_columns(columns).with_format("arrow")

    def _examples(self, epochs: np.ndarray, images: np.ndarray) -> list[dict[str, Any]]:
        table = self.tokens[images]
        input_ids = table.column("input_ids").combine_chunks()
        input_ids = input_ids.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.num_tokens)
        if self.augment != "none":
            positions = augmented_positions(
                self.augment,
                self.grid,
                self.num_channels,
                seed=self.seed,
                epochs=epochs,
                indices=images,
                padding=self.padding,
            )
            input_ids = np.take_along_axis(input_ids, positions, axis=1)
        examples = [{"input_ids": row} for row in input_ids]
        if "label" in table.column_names:
            for example, label in zip(examples, table.column("label").to_pylist(), strict=True):
                example["label"] = label
        return examples


class ImageTokenDataset(KeyedDataset):
    """Images that are cropped and quantized as they are read: ImageNet's random resize and crop (paper §3.1).

    The same examples as `TokenDataset`. Decoding costs milliseconds an image: use several workers.

    Args:
        images: A split with images.
        processor: The image processor that makes the tokens.
        image_column: Column with the images, found where there is one.
        label_column: Column with the class, or "none"; found where there is one.
        seed: Seed of the crops.
        shorter_side: Smallest and largest length of the resized shorter side in pixels.
        crop_size: Side of the crop in pixels, before the processor reduces it to its grid with its own filter.
        image_roots: Folders that a row's path may point into.

    Raises:
        ValueError: If there is no image, a column is missing, or an image read is damaged (names row and file).
    """

    def __init__(
        self,
        images: "Dataset",
        processor: Any,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        seed: int = 0,
        shorter_side: tuple[int, int] = (256, 384),
        crop_size: int = 224,
        image_roots: tuple[str, ...] = (),
    ):
        from datasets import Image

        super().__init__(len(images), "images")
        self.image_column = find_image_column(images.features, image_column)
        self.label_column = find_label_column(images.features, label_column)
        self.images = images.cast_column(self.image_column, Image(decode=False)).with_format(None)
        self.processor = processor
        self.num_values = processor.num_values
        self.seed, self.shorter_side, self.crop_size = seed, shorter_side, crop_size
        self.image_roots = image_roots

    def _examples(self, epochs: np.ndarray, images: np.ndarray) -> list[dict[str, Any]]:
        rows = self.images[images]
        values = rows[self.image_column]
        keys = zip(values, epochs.tolist(), images.tolist(), strict=True)
        crops = [self._crop(value, epoch, image) for value, epoch, image in keys]
        input_ids = self.processor.quantize(self.processor.pixels(crops))
        examples = [{"input_ids": row} for row in input_ids]
        if self.label_column is not None:
            for example, label in zip(examples, rows[self.label_column], strict=True):
                example["label"] = label
        return examples

    def _crop(self, value: Any, epoch: int, image: int) -> Any:
        return random_resized_crop(
            opened_image(value, image, self.image_roots),
            seed=self.seed,
            epoch=epoch,
            index=image,
            shorter_side=self.shorter_side,
            crop_size=self.crop_size,
            resample=self.processor.resample,
        )


def opened_image(value: Any, row: int, image_roots: tuple[str, ...]) -> "PILImage":
    """The RGB image of one row, as `read_image` takes it. Raises ValueError with row and file if it is damaged."""
    from hf_igpt.image_processing_igpt import to_rgb

    try:
        return to_rgb(read_image(value, image_roots))
    except (ValueError, OSError) as error:
        file = f", file {row_file(value)}" if row_file(value) else ""
        raise ValueError(f"The image in row {row}{file} can't be used: {error}") from error


class EpochSampler(Sampler[int]):
    """Deals the keys of one training epoch, so that every batch is full and no image is repeated to fill one.

    The images are a stream: one seeded permutation of all of them after the other. Training epoch e is the piece
    [e * S, (e + 1) * S) of the stream, with S the number of images rounded up to whole batches. Its batches don't
    depend on how many processes or accumulation steps share `total_batch_size`, since accelerate deals consecutive
    batches out to the processes in turn.

    Whoever trains must call `set_epoch` itself before each epoch. accelerate's data loaders pass it on too, but not
    after `skip_first_batches` with several processes, which is how Trainer resumes.

    Args:
        num_images: Images in the data set.
        total_batch_size: Images per optimizer step: per device x devices x accumulation steps.
        seed: Seed of the permutations.
        shuffle: Whether to permute; otherwise images come in order, with the epochs in their keys all the same.

    Raises:
        ValueError: If there is no image or the batch is empty.
    """

    def __init__(self, num_images: int, total_batch_size: int, seed: int = 0, shuffle: bool = True):
        for name, value in (("num_images", num_images), ("total_batch_size", total_batch_size)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self.num_images, self.total_batch_size = num_images, total_batch_size
        self.seed, self.shuffle = seed, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the training epoch that the next iteration deals."""
        self.epoch = epoch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a training epoch."""
        return -(-self.num_images // self.total_batch_size)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.total_batch_size

    def __iter__(self) -> Iterator[int]:
        start, stop = self.epoch * len(self), (self.epoch + 1) * len(self)
        while start < stop:
            data_epoch, first = divmod(start, self.num_images)
            images = self._order(data_epoch)[first : first + stop - start]
            yield from (data_epoch * self.num_images + images).tolist()
            start += len(images)

    def _order(self, data_epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_images)
        return random_permutation("order", self.seed, data_epoch, self.num_images)


@dataclass(frozen=True)
class TokenCollator:
    """Batches examples for next-pixel training: {"labels": int64 tensor of shape (batch, tokens)}.

    The causal head takes the tokens as labels and does the rest (start token, shift). Class labels of the examples are
    left out: this objective has no use for them.

    Args:
        num_values: Number of token values; the start token is `num_values` itself.
        num_tokens: Tokens of an image; None takes any length, as long as a batch has one.

    Raises:
        ValueError: On a batch with no example, another length, or a token outside the vocabulary, which on an
            accelerator would end the process without a reason. Names value, position and limits.
    """

    num_values: int
    num_tokens: int | None = None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {"labels": torch.from_numpy(self.stack_tokens(examples))}

    def stack_tokens(self, examples: list[dict[str, Any]]) -> np.ndarray:
        """The checked tokens of a batch, int64 of shape (batch, tokens)."""
        if not examples:
            raise ValueError("A batch needs at least one example, got none.")
        rows = [np.asarray(example["input_ids"]) for example in examples]
        length = len(rows[0]) if self.num_tokens is None else self.num_tokens
        for number, row in enumerate(rows):
            if row.shape != (length,) or row.dtype.kind not in "iu":
                raise ValueError(
                    f"`input_ids` of example {number} must be {length} integers, got {row.dtype} of shape {row.shape}."
                )
        tokens = np.stack(rows).astype(np.int64)
        if tokens.min(initial=0) < 0 or tokens.max(initial=0) >= self.num_values:
            self._refuse(tokens)
        return tokens

    def _refuse(self, tokens: np.ndarray) -> None:
        example, position = np.argwhere((tokens < 0) | (tokens >= self.num_values))[0]
        value = int(tokens[example, position])
        start = " (the start token, which is never a label)" if value == self.num_values else ""
        raise ValueError(
            f"`input_ids` must lie in 0 to {self.num_values - 1}, got {value}{start} at position {position} of "
            f"example {example}; tokens and model must be of one palette or VQ-VAE."
        )


@dataclass(frozen=True)
class MaskedTokenCollator(TokenCollator):
    """
    Batches examples for masked-pixel training: "input_ids" and "labels", the same int64 tensor of shape (batch,
    tokens), and "bool_masked_pos", a bool tensor of that shape.

    Trainer counts the labels of a step to weight its batches, so all tokens are labels; the head scores hidden ones.

    Args:
        masking: draws the masks from the examples' "epoch" and "image".

    Raises:
        ValueError: As for `TokenCollator`, and on examples that don't carry their key.
    """

    masking: Masking = field(kw_only=True)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        tokens = torch.from_numpy(self.stack_tokens(examples))
        return {"input_ids": tokens, "bool_masked_pos": _draw_masks(self.masking, examples), "labels": tokens}


@dataclass(frozen=True)
class ClassCollator(TokenCollator):
    """
    Batches examples for classification: "input_ids", int64 of shape (batch, tokens), and "labels", the classes, int64
    of shape (batch,); with a `masking` also "bool_masked_pos", bool of the shape of the tokens.

    Args:
        num_classes: classes are 0 to `num_classes` - 1.
        masking: draws the masks from the examples' "epoch" and "image"; None for next-pixel models.

    Raises:
        ValueError: As for `TokenCollator`, on examples without a class in that range, and with a masking on examples
            that don't carry their key.
    """

    num_classes: int = field(kw_only=True)
    masking: Masking | None = field(default=None, kw_only=True)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        tokens = torch.from_numpy(self.stack_tokens(examples))
        for number, example in enumerate(examples):
            label = example.get("label")
            if not isinstance(label, int | np.integer) or not 0 <= label < self.num_classes:
                raise ValueError(
                    f"`label` of example {number} must be a class from 0 to {self.num_classes - 1}, got {label!r}."
                )
        batch = {"input_ids": tokens, "labels": torch.tensor([int(example["label"]) for example in examples])}
        if self.masking is not None:
            batch["bool_masked_pos"] = _draw_masks(self.masking, examples)
        return batch


def _draw_masks(masking: Masking, examples: list[dict[str, Any]]) -> torch.Tensor:
    try:
        epochs, images = (np.array([example[name] for example in examples]) for name in ("epoch", "image"))
    except KeyError as error:
        raise ValueError(
            f"Examples must have {error}, which masks are a function of, got {', '.join(examples[0])}; take them "
            "from a `TokenDataset` or an `ImageTokenDataset`."
        ) from None
    return torch.from_numpy(masking(epochs, images))
