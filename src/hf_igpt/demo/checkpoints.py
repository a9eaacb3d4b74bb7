"""The checkpoints that a demo shows: a fixed list, each opened when somebody first asks for it."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.demo.examples import Example, sample_examples, token_examples


if TYPE_CHECKING:
    from datasets import DatasetDict

    from hf_igpt import IGPTImageProcessor, ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling

NUM_EXAMPLES = 8
NUM_REFERENCES = 512


@dataclass(frozen=True)
class Checkpoint:
    """
    A model with what lies beside it.

    Args:
        name: folder or Hub name, as it was given.
        model: in evaluation mode.
        tokens: the run's tokenized splits, if they are there.
        probes: results.json contents of probes of these weights.
        lock: held by whoever runs the model.
    """

    name: str
    model: "ImageGPTForCausalImageModeling | ImageGPTForMaskedImageModeling"
    processor: "IGPTImageProcessor"
    tokens: "DatasetDict | None" = None
    probes: Sequence[Mapping[str, Any]] = ()
    lock: Any = field(default_factory=threading.Lock, repr=False)

    @property
    def is_causal(self) -> bool:
        """Whether it is a next-pixel model."""
        return self.model.config.is_causal

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of the token grid."""
        return self.model.config.grid

    @property
    def cell(self) -> str:
        """What a cell of the grid is to people."""
        return "pixel" if self.processor.cell_size == 1 else "cell"

    @property
    def num_layers(self) -> int:
        """The number of the last layer, which is the final norm."""
        return self.model.config.num_hidden_layers

    def summary(self) -> str:
        """One sentence about the model."""
        height, width = self.grid
        kind = "Next-pixel model, draws from top to bottom" if self.is_causal else "Masked model, draws in any order"
        tokens, millions = self.processor.description, self.model.num_parameters() / 1e6
        return f"{kind}: {height} x {width} cells of {tokens}, {millions:.2f} million parameters."

    @cached_property
    def examples(self) -> list[Example]:
        """Images to start from: the first test images, or others where the run's are not there."""
        if self.tokens is None:
            return sample_examples()[:NUM_EXAMPLES]
        # Held-out images, so that a completion is no memory of training.
        split = next(name for name in ("test", "validation", *self.tokens) if name in self.tokens)
        return token_examples(self.tokens, split, NUM_EXAMPLES, self.processor)

    @cached_property
    def references(self) -> list[Example]:
        """A small set to look for neighbours in: the first training images, or the examples."""
        if self.tokens is None or "train" not in self.tokens:
            return self.examples
        return token_examples(self.tokens, "train", NUM_REFERENCES, self.processor)

    @cached_property
    def reference_features(self) -> list[np.ndarray]:
        """Features of the references, for every layer an array of shape (references, width)."""
        from hf_igpt.evaluation.features import extract_features

        tokens = self.processor([example.image for example in self.references]).input_ids
        return extract_features(self.model, tokens)


class Library(Mapping[str, Checkpoint]):
    """
    A demo's checkpoints by name.

    Args:
        names: in the order shown; the first is chosen at the start.
        open_checkpoint: reads one.
    """

    def __init__(self, names: Sequence[str], open_checkpoint: Callable[[str], Checkpoint]):
        if not names:
            raise ValueError("`names` must hold at least one checkpoint, got none.")
        self._names = list(dict.fromkeys(names))
        self._open = open_checkpoint
        self._opened: dict[str, Checkpoint] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Checkpoint:
        if not isinstance(name, str) or name not in self._names:
            raise ValueError(f"Checkpoint must be one of {', '.join(self._names)}, got {str(name)[:100]!r}.")
        with self._lock:
            if name not in self._opened:
                self._opened[name] = self._open(name)
            return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
