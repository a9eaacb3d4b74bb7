"""What a checkpoint's features know: the probe's curve, and an image's nearest neighbours."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hf_igpt.demo.checkpoints import Checkpoint
from hf_igpt.demo.examples import Example


NUM_NEIGHBOURS = 8


@dataclass(frozen=True)
class Neighbour:
    """An image near another one, with the cosine similarity of their features."""

    example: Example
    similarity: float


def best_layer(checkpoint: Checkpoint) -> int:
    """The layer that the probe's validation chose; without a probe the middle one."""
    return checkpoint.probes[0]["metrics"]["best"]["layer"] if checkpoint.probes else checkpoint.num_layers // 2


def probe_curve(checkpoint: Checkpoint) -> tuple[Image.Image, str] | None:
    """The figure of accuracy by layer, and what it shows in words; None without results of a probe."""
    from hf_igpt.figures import save_layers
    from hf_igpt.measured import Measured

    if not checkpoint.probes:
        return None
    measured = [Measured(dict(checkpoint.probes[0]), source="results.json", name="this checkpoint")]
    with tempfile.TemporaryDirectory() as folder:
        (curve,) = save_layers(measured, Path(folder) / "layers.png")
        with Image.open(Path(folder) / "layers.png") as image:
            figure = image.convert("RGB")
    points = ", ".join(
        f"layer {layer} {accuracy:.1f} %" for layer, accuracy in zip(curve["layers"], curve["accuracies"], strict=True)
    )
    return figure, f"Accuracy of a probe by layer: {points}."


def nearest_neighbours(checkpoint: Checkpoint, image: Image.Image, layer: int) -> list[Neighbour]:
    """
    The images of a small set whose features are most like those of an image, nearest first.

    Raises:
        ValueError: there is no such layer.
    """
    import torch

    from hf_igpt.evaluation.features import extract_features
    from hf_igpt.evaluation.knn import nearest_rows

    if isinstance(layer, bool) or not isinstance(layer, int | float) or layer not in range(checkpoint.num_layers + 1):
        raise ValueError(f"Layer must be a whole number from 0 to {checkpoint.num_layers}, got {str(layer)[:100]!r}.")
    with checkpoint.lock:
        references = checkpoint.reference_features[int(layer)]
        features = extract_features(checkpoint.model, checkpoint.processor([image]).input_ids)[int(layer)]
    count = min(NUM_NEIGHBOURS, len(references))
    similarity, rows = nearest_rows(torch.from_numpy(references), torch.from_numpy(np.asarray(features)), count)
    return [
        Neighbour(checkpoint.references[row], value)
        for row, value in zip(rows[0].tolist(), similarity[0].tolist(), strict=True)
    ]
