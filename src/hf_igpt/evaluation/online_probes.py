"""Probes trained while the frozen backbone runs: every layer at every learning rate in one pass, nothing stored."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hf_igpt.evaluation.features import layer_window
from hf_igpt.evaluation.layers import visit_layers
from hf_igpt.evaluation.probes import check_layers


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_igpt.data.masking import Masking
    from hf_igpt.modeling_igpt import ImageGPTPreTrainedModel

WEIGHTS = "model.safetensors"
# Images that mean and variance of the features are taken from.
STATISTICS_IMAGES = 4096


class LinearHeads(nn.Module):
    """
    Linear classifiers of mean-pooled features, one for each layer.

    Args:
        num_layers, width, num_classes: sizes; the weights start at zero.
    """

    def __init__(self, num_layers: int, width: int, num_classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_layers, width, num_classes))
        self.bias = nn.Parameter(torch.zeros(num_layers, num_classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (layers, batch, classes) of features (layers, batch, width)."""
        return torch.baddbmm(self.bias.unsqueeze(1), features, self.weight)


class AttentiveHeads(nn.Module):
    """
    Classifiers with an attention pooling of their own, one for each layer, as in AIM (El-Nouby et al., 2024): every
    head weighs the positions by a learned query and projects what it pools. Queries start at zero, as mean pooling.

    Args:
        num_layers, width, num_classes: sizes.
        num_heads: of the pooling; must divide the width.
    """

    def __init__(self, num_layers: int, width: int, num_classes: int, num_heads: int):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(num_layers, num_heads, width))
        self.value = nn.Parameter(torch.randn(num_layers, num_heads, width, width // num_heads) * width**-0.5)
        self.weight = nn.Parameter(torch.zeros(num_layers, width, num_classes))
        self.bias = nn.Parameter(torch.zeros(num_layers, num_classes))

    def forward(self, states: torch.Tensor, layer: int) -> torch.Tensor:
        """Logits (batch, classes) of one layer's states (batch, tokens, width)."""
        scores = states @ self.query[layer].T  # (batch, tokens, heads)
        pooled = torch.einsum("bth,btc->bhc", scores.softmax(dim=1), states)
        values = torch.einsum("bhc,hcd->bhd", pooled, self.value[layer]).flatten(1)
        return values @ self.weight[layer] + self.bias[layer]


class OnlineProbes(nn.Module):
    """
    Probes of several layers at several learning rates on one frozen backbone, which is no part of the module: neither
    its parameters nor its checkpoints hold it. Probes share nothing, so the loss is the sum of theirs.

    Args:
        backbone: a backbone or any of its heads; put into evaluation mode.
        num_classes: classes are 0 to `num_classes` - 1.
        layers: those to probe.
        num_rates: classifiers of each layer; `heads[rate]` has those of all layers.
        attentive: learn how to pool instead of averaging over positions.
        num_heads: of an attentive pooling; by default the backbone's.
        concatenate: neighbouring layers put side by side (see `concatenated`).
        normed: False takes the residual stream in front of the norms.
        seed: of the first weights.

    Raises:
        ValueError: an unknown layer, heads that don't divide the width, or an attentive pooling of concatenated
            layers.
    """

    def __init__(
        self,
        backbone: "ImageGPTPreTrainedModel",
        num_classes: int,
        layers: Sequence[int],
        num_rates: int,
        *,
        attentive: bool = False,
        num_heads: int | None = None,
        concatenate: int = 1,
        normed: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        config = backbone.config
        width, num_heads = config.hidden_size, num_heads or config.num_attention_heads
        check_layers(layers, concatenate, config.num_hidden_layers + 1)
        if attentive and concatenate > 1:
            raise ValueError(f"An attentive probe pools one layer, got `concatenate` {concatenate}. Leave it out.")
        if attentive and width % num_heads:
            raise ValueError(f"`num_heads` must divide the width {width}, got {num_heads}.")
        # A tuple hides it from the module.
        self._backbone = (backbone.eval(),)
        self.layers, self.num_rates, self.num_classes = list(layers), num_rates, num_classes
        self.attentive, self.concatenate, self.normed = attentive, concatenate, normed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(
                AttentiveHeads(len(self.layers), width, num_classes, num_heads)
                if attentive
                else LinearHeads(len(self.layers), width * concatenate, num_classes)
                for _ in range(num_rates)
            )
        # Kept by layer of the backbone, so that neighbours can be put side by side.
        self.register_buffer("mean", torch.zeros(config.num_hidden_layers + 1, width))
        self.register_buffer("scale", torch.ones(config.num_hidden_layers + 1, width))

    @property
    def backbone(self) -> "ImageGPTPreTrainedModel":
        """The frozen model."""
        return self._backbone[0]

    def standardize(self, tokens: "Dataset | np.ndarray", masking: "Masking | None", batch_size: int) -> None:
        """
        Gives every feature mean 0 and variance 1 over the first `STATISTICS_IMAGES` images, whichever process does it:
        the pooled features for linear probes, those of all positions for attentive ones.
        """
        from hf_igpt.data.token_store import token_rows

        count, total, squares = 0, 0, 0
        device = self.mean.device
        for start in range(0, min(len(tokens), STATISTICS_IMAGES), batch_size):
            images = np.arange(start, min(start + batch_size, len(tokens), STATISTICS_IMAGES))
            batch = torch.from_numpy(token_rows(tokens, images).astype(np.int64)).to(device)
            mask = None if masking is None else torch.from_numpy(masking(0, images)).to(device)
            states = [values.double() for values in self._shown(batch, mask, range(len(self.mean)))]
            count += len(images) * (batch.shape[1] if self.attentive else 1)
            total = total + torch.stack([values.flatten(0, -2).sum(dim=0) for values in states])
            squares = squares + torch.stack([values.square().flatten(0, -2).sum(dim=0) for values in states])
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        # What never varies over these images may do so over others, but not by much.
        self.scale.copy_(torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), 1.0))

    def _shown(self, tokens: torch.Tensor, mask: torch.Tensor | None, wanted: Sequence[int]) -> list[torch.Tensor]:
        """Of each wanted layer the mean over positions (batch, width) or all states (batch, tokens, width)."""
        shown = {}

        def keep(layer: int, states: torch.Tensor) -> None:
            if layer in wanted:
                shown[layer] = states.float() if self.attentive else states.mean(dim=1, dtype=torch.float32)

        with torch.no_grad():
            visit_layers(self.backbone, tokens, keep, bool_masked_pos=mask, normed=self.normed)
        return [shown[layer] for layer in wanted]

    def logits(self, tokens: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> torch.Tensor:
        """
        What every probe says of whole images.

        Args:
            tokens: ids of shape (batch, tokens), without the start token.
            bool_masked_pos: for masked models, True where a token is hidden.

        Returns:
            float32 of shape (rates, layers, batch, classes).
        """
        count = len(self.mean)
        windows = [layer_window(count, self.concatenate, layer) for layer in self.layers]
        wanted = sorted({layer for window in windows for layer in window})
        states = {
            layer: (values - self.mean[layer]) * self.scale[layer]
            for layer, values in zip(wanted, self._shown(tokens, bool_masked_pos, wanted), strict=True)
        }
        if self.attentive:
            return torch.stack(
                [
                    torch.stack([heads(states[layer], row) for row, layer in enumerate(self.layers)])
                    for heads in self.heads
                ]
            )
        features = torch.stack([torch.cat([states[layer] for layer in window], dim=-1) for window in windows])
        return torch.stack([heads(features) for heads in self.heads])

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, bool_masked_pos: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The sum over probes of the mean cross-entropy, as Trainer takes it."""
        return {"loss": class_nats(self.logits(input_ids, bool_masked_pos), labels).mean(dim=-1).sum()}

    def save_pretrained(self, folder: str | os.PathLike, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Writes the probes' weights, under the name that Trainer looks for when it resumes."""
        from safetensors.torch import save_file

        weights = self.state_dict() if state_dict is None else state_dict
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, Path(folder) / WEIGHTS)


def class_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats (rates, layers, batch) of logits (rates, layers, batch, classes)."""
    rates, layers, batch, classes = logits.shape
    targets = labels.expand(rates, layers, batch).reshape(-1)
    return F.cross_entropy(logits.reshape(-1, classes), targets, reduction="none").view(rates, layers, batch)


def online_votes(
    probes: OnlineProbes,
    tokens: "Dataset | np.ndarray",
    labels: np.ndarray,
    *,
    masking: "Masking | None" = None,
    mask: tuple[int, int] = (0, 1),
    batch_size: int = 64,
    progress: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    What every probe says of every image of a split: votes, int64, and cross-entropies in nats, float64, both of shape
    (rates, layers, images). With several processes each takes a share, and all of them return the whole.

    Args:
        labels: the images' classes, int64 of shape (images,).
        masking, mask: as for `extract_features`.

    Raises:
        ValueError: as `score_images`.
    """
    from hf_igpt.evaluation.likelihood import score_images

    def score(_: Any, batch: torch.Tensor, images: np.ndarray) -> torch.Tensor:
        hidden = None if masking is None else torch.from_numpy(masking(0, images, mask)).to(batch.device)
        logits = probes.logits(batch, hidden)
        nats = class_nats(logits, torch.from_numpy(labels[images]).to(batch.device))
        columns = torch.stack([logits.argmax(dim=-1).double(), nats.double()])  # (2, rates, layers, batch)
        return columns.flatten(0, 2).T

    numbers = score_images(probes.backbone, tokens, score, batch_size, progress, "loss")
    votes, nats = numbers.T.reshape(2, probes.num_rates, len(probes.layers), len(labels))
    return votes.astype(np.int64), nats
