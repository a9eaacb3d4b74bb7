"""The weights of a model as a whole: what identifies them, and whether they are numbers."""

import hashlib
from typing import TYPE_CHECKING

import torch


if TYPE_CHECKING:
    from transformers import PreTrainedModel


def weights_digest(model: "PreTrainedModel") -> str:
    """SHA-256 over names and bytes of all weights: what results are keyed by."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_finite(model: "PreTrainedModel", name_or_path: str) -> None:
    """Raises ValueError with the first tensor that has NaN or infinities, and with their number."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and (wrong := int((~tensor.isfinite()).sum())):
            raise ValueError(
                f"{name_or_path}: {wrong} of the {tensor.numel()} numbers in {name} are NaN or infinite. Such a model "
                "computes nothing; take an earlier checkpoint."
            )
