"""
A shallow VQ-VAE: images to grids of codes and back, a tokenizer for Image GPT.

What the paper's first version says of its own, and what is our choice, is in `configuration_igpt_vqvae.py`.

- Encoder: a convolution of 4x4 and stride 2 for each halving, residual blocks (ReLU, 3x3, ReLU, 1x1), a 1x1
  projection to the size of a code. The decoder mirrors it, with transposed convolutions. There are no norms and there
  is no attention: a code depends on `receptive_field` x `receptive_field` pixels and on nothing else.
- Loss: mean squared error of the pixels in [-1, 1] plus `commitment_weight` times that between the encoder's vectors
  and their codes. Gradients pass the quantization straight through.
- The codes are buffers, running means of the vectors that chose them (van den Oord et al., 2017, appendix A.1), and
  learn in `update_codebook`. A code that hardly any vector chooses gets the place of one of them (as in Jukebox).

Shapes: B images of H x W pixels, h = H / downsampling, w = W / downsampling, K codes of D numbers.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import distributed, nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput, find_adapter_config_file, logging

from .config_files_igpt import check_finite, place_of
from .configuration_igpt_vqvae import ImageGPTVQVAEConfig
from .saving_igpt import SavedOverMixin, is_one_of_many


logger = logging.get_logger(__name__)

# Pixels encoded or decoded at once, at least one image.
_BLOCK_PIXELS = 1 << 18
# Distances between vectors and codes in memory at once.
_BLOCK_DISTANCES = 1 << 22
# Training passes without an update of the codebook before that is said.
_FORGOTTEN_PASSES = 256
# What decides which code an image gets and which image a code gives.
_TOKEN_FIELDS = ("downsampling", "codebook_size", "code_size", "hidden_size", "num_residual_blocks", "residual_size")
_TRAINING_BUFFERS = ("ema_counts", "ema_sums", "num_updates")
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# How far products round their inputs, by torch's setting.
_INPUT_ROUNDING = {"highest": 0.0, "high": 2.0**-11, "medium": 2.0**-8}


@dataclass
class ImageGPTVQVAEOutput(ModelOutput):
    """
    Args:
        loss: `reconstruction_loss` + `commitment_weight` x `commitment_loss`.
        reconstruction: images (B, 3, H, W), about -1 to 1, not clipped.
        codes: int64 of shape (B, h, w).
        reconstruction_loss: mean squared error over pixels and channels.
        commitment_loss: mean squared distance, over all numbers, of the encoder's vectors from their codes.
    """

    loss: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    commitment_loss: torch.FloatTensor | None = None


def nearest_codes(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.LongTensor:
    """
    The code nearest to each vector: argmin of the squared distance in float64, the lowest index among equals.

    Distances from one matrix product in float32 leave few codes that could be the nearest, by a bound on their
    rounding. Only between those is decided in float64.

    Args:
        vectors: of shape (n, D).
        codebook: of shape (K, D).

    Returns:
        int64 of shape (n,).
    """
    if vectors.device.type == "mps":  # has no float64
        return nearest_codes(vectors.cpu(), codebook.cpu()).to(vectors.device)
    with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
        vectors, codebook = vectors.detach().float(), codebook.detach().float()
        half_squares = codebook.double().square().sum(dim=1).div(2).float()
        # Of a dot product of D terms in any order, of the half square, and of their difference. Twice, for the least
        # score may be too low by it and another too high; and twice again, for what bounds like these leave out.
        rounding = 2 * _INPUT_ROUNDING[torch.get_float32_matmul_precision()] + (codebook.shape[1] + 4) * 2.0**-24
        largest = codebook.norm(dim=1).max()
        margins = 4 * rounding * largest * (vectors.norm(dim=1) + largest)
        rows = max(1, _BLOCK_DISTANCES // len(codebook))
        blocks = zip(vectors.split(rows), margins.split(rows), strict=True)
        return torch.cat([_nearest_in_block(block, codebook, half_squares, margin) for block, margin in blocks])


def _nearest_in_block(
    vectors: torch.Tensor, codebook: torch.Tensor, half_squares: torch.Tensor, margin: torch.Tensor
) -> torch.LongTensor:
    scores = torch.addmm(half_squares, vectors, codebook.T, alpha=-1)  # half the distance, less what all share
    best, codes = scores.min(dim=1)
    is_rival = scores <= (best + margin)[:, None]
    is_open = is_rival.sum(dim=1) > 1
    if not bool(is_open.any()):
        return codes
    open_rows = is_open.nonzero()[:, 0]
    pairs = is_rival[open_rows].nonzero()
    distances = torch.full((len(open_rows), len(codebook)), torch.inf, dtype=torch.float64, device=vectors.device)
    for row, code in zip(*(part.split(_BLOCK_DISTANCES // 64) for part in pairs.T), strict=True):
        difference = vectors[open_rows[row]].double() - codebook[code].double()
        distances[row, code] = difference.square().sum(dim=1)
    is_nearest = distances == distances.min(dim=1, keepdim=True).values
    codes[open_rows] = is_nearest.int().argmax(dim=1)
    return codes


class ImageGPTVQVAECodebook(nn.Module):
    """The codes, and the running counts and sums of the vectors that chose them."""

    def __init__(self, config: ImageGPTVQVAEConfig):
        super().__init__()
        self.decay, self.threshold, self.seed = config.ema_decay, config.revival_threshold, config.revival_seed
        size, width = config.codebook_size, config.code_size
        self.register_buffer("codebook", torch.empty(size, width))
        self.register_buffer("ema_counts", torch.empty(size))
        self.register_buffer("ema_sums", torch.empty(size, width))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self._collected: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Codes, int64 of shape (n,), of vectors of shape (n, D), and the codes' own vectors. In training mode both are
        kept for `update`.
        """
        codes = nearest_codes(vectors, self.codebook)
        if self.training:
            self._collected.append((vectors.detach().float(), codes))
            if len(self._collected) == _FORGOTTEN_PASSES:
                logger.warning(
                    "%d passes in training mode without `update_codebook()`: the codes stay what they are, and the "
                    "vectors of all passes stay in memory. Call it after each step of the optimizer.",
                    _FORGOTTEN_PASSES,
                )
        return codes, self.codebook[codes]

    @torch.no_grad()
    def update(self) -> None:
        """
        Moves the codes to the running means of the vectors since the last update, and unused codes to one of these
        vectors each. Under several processes all must call it together; the vectors of all count, and every process
        gets the same codes.
        """
        if not self._collected:
            raise ValueError("There is nothing to update the codebook with: call the model in training mode first.")
        batches, self._collected = self._collected, []
        size, width = self.codebook.shape
        counts = self.ema_counts.new_zeros(size)
        sums = self.ema_sums.new_zeros(size, width)
        for vectors, codes in batches:
            counts += torch.bincount(codes, minlength=size)
            sums.index_add_(0, codes, vectors.to(sums.dtype))
        candidates = self._candidates([vectors for vectors, _ in batches])
        counts, sums, candidates = _over_processes(counts, sums, candidates)

        self.ema_counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.ema_sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        has_mean = self.ema_counts > torch.finfo(self.ema_counts.dtype).tiny
        means = self.ema_sums / self.ema_counts.where(has_mean, 1)[:, None]
        self.codebook.copy_(means.where(has_mean[:, None], self.codebook))
        self._revive(candidates, counts.sum())
        self.num_updates += 1

    def _candidates(self, batches: list[torch.Tensor]) -> torch.Tensor:
        """
        Up to K vectors of the step in a random order that depends on the seed and on how many updates there were;
        of several processes those that are this one's, and zeros in place of the others'.

        The order of the step's vectors is that of its images, for processes are dealt batches in turns: so the choice
        does not depend on how a step is split into batches and processes.
        """
        sizes, rank = _sizes_of_all([len(batch) for batch in batches])
        total = sum(map(sum, sizes))
        # Of a longer seed the generator takes 32 bits only.
        key = hashlib.sha256(f"{self.seed} {int(self.num_updates)}".encode()).digest()[:4]
        generator = torch.Generator().manual_seed(int.from_bytes(key, "little"))
        chosen = torch.randperm(total, generator=generator)[: len(self.codebook)]
        candidates = self.codebook.new_zeros(len(chosen), self.codebook.shape[1])
        first = 0
        for number, batch in enumerate(batches):
            first += sum(of_rank[number] for of_rank in sizes[:rank])
            is_here = (chosen >= first) & (chosen < first + len(batch))
            rows = is_here.nonzero()[:, 0].to(batch.device)
            candidates[rows] = batch[(chosen[is_here] - first).to(batch.device)].to(candidates.dtype)
            first += sum(of_rank[number] for of_rank in sizes[rank:])
        return candidates

    def _revive(self, candidates: torch.Tensor, num_vectors: torch.Tensor) -> None:
        if self.threshold > 0:
            is_dead = self.ema_counts <= self.threshold * self.ema_counts.mean()
        else:
            is_dead = torch.zeros_like(self.ema_counts, dtype=torch.bool)
        is_dead |= self.num_updates == 0  # the first codes are vectors of the first step
        rank = is_dead.cumsum(dim=0) - 1
        is_dead &= rank < len(candidates)
        codes = candidates[rank.clamp(0, len(candidates) - 1)]
        # As many vectors as there were if all codes were chosen equally often.
        counts = (num_vectors / len(self.codebook)).expand_as(self.ema_counts)
        self.codebook.copy_(codes.where(is_dead[:, None], self.codebook))
        self.ema_counts.copy_(counts.where(is_dead, self.ema_counts))
        self.ema_sums.copy_((codes * counts[:, None]).where(is_dead[:, None], self.ema_sums))


def _sizes_of_all(sizes: list[int]) -> tuple[list[list[int]], int]:
    """The sizes of every process's batches, and the number of this process."""
    if not is_one_of_many():
        return [sizes], 0
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, sizes)
    return gathered, distributed.get_rank()


def _over_processes(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if is_one_of_many():
        for tensor in tensors:
            distributed.all_reduce(tensor)
    return tensors


class _ResidualBlock(nn.Module):
    def __init__(self, config: ImageGPTVQVAEConfig):
        super().__init__()
        self.conv_in = nn.Conv2d(config.hidden_size, config.residual_size, 3, padding=1)
        self.conv_out = nn.Conv2d(config.residual_size, config.hidden_size, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.conv_out(F.relu(self.conv_in(F.relu(hidden_states))))


def _widths(config: ImageGPTVQVAEConfig) -> list[int]:
    """Channels after each halving of the resolution."""
    halvings = config.downsampling.bit_length() - 1
    return [config.hidden_size >> (halvings - 1 - number) for number in range(halvings)]


class ImageGPTVQVAEEncoder(nn.Module):
    """Images (B, 3, H, W) to vectors (B, D, h, w)."""

    def __init__(self, config: ImageGPTVQVAEConfig):
        super().__init__()
        widths = _widths(config)
        pairs = zip([3, *widths], widths, strict=False)
        self.down = nn.ModuleList([nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in pairs])
        self.blocks = nn.ModuleList([_ResidualBlock(config) for _ in range(config.num_residual_blocks)])
        self.project = nn.Conv2d(config.hidden_size, config.code_size, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for number, layer in enumerate(self.down):
            hidden_states = layer(F.relu(hidden_states) if number else hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.project(F.relu(hidden_states))


class ImageGPTVQVAEDecoder(nn.Module):
    """Vectors (B, D, h, w) to images (B, 3, H, W)."""

    def __init__(self, config: ImageGPTVQVAEConfig):
        super().__init__()
        widths = [3, *_widths(config)][::-1]
        pairs = zip(widths, widths[1:], strict=False)
        self.project = nn.Conv2d(config.code_size, config.hidden_size, 1)
        self.blocks = nn.ModuleList([_ResidualBlock(config) for _ in range(config.num_residual_blocks)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(before, after, 4, stride=2, padding=1) for before, after in pairs])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.project(hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        for layer in self.up:
            hidden_states = layer(F.relu(hidden_states))
        return hidden_states


class ImageGPTVQVAEModel(SavedOverMixin, PreTrainedModel):
    """
    A VQ-VAE: `encode` gives the codes of images, `decode` images of codes, the forward pass the loss to train with.

    In training call `update_codebook` after each step of the optimizer:

    ```
    loss = model(pixel_values).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    model.update_codebook()
    ```
    """

    config_class = ImageGPTVQVAEConfig
    base_model_prefix = "vqvae"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _auto_class = "AutoModel"
    _no_split_modules = []

    def __init__(self, config: ImageGPTVQVAEConfig):
        config.validate_fields()
        super().__init__(config)
        self.encoder = ImageGPTVQVAEEncoder(config)
        self.quantizer = ImageGPTVQVAECodebook(config)
        self.decoder = ImageGPTVQVAEDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # He's initialisation: every layer but the first reads rectified values. The first codes are replaced by
        # vectors of the first step.
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            # Of a transposed convolution of stride s, an output sums kernel / s inputs in each direction.
            taps = module.kernel_size[0] ** 2
            taps //= module.stride[0] ** 2 if isinstance(module, nn.ConvTranspose2d) else 1
            init.normal_(module.weight, std=(2 / (module.in_channels * taps)) ** 0.5)
            init.zeros_(module.bias)
        elif isinstance(module, ImageGPTVQVAECodebook):
            init.normal_(module.codebook, std=module.codebook.shape[1] ** -0.5)
            for name in _TRAINING_BUFFERS:
                init.zeros_(getattr(module, name))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info=False, **kwargs):
        """
        As in transformers, from safetensors only.

        Raises:
            ValueError: another format is asked for; the config is not one of a VQ-VAE; there is an adapter; a tensor
                is missing, unknown, of another shape or not finite.
        """
        if kwargs.setdefault("use_safetensors", True) is not True:
            raise ValueError("`use_safetensors` must be True: a tokenizer's weights are read from safetensors only.")
        place = place_of(pretrained_model_name_or_path, kwargs.get("subfolder"))
        if os.path.isdir(place):
            # Older transformers look for an adapter in the folder above.
            pretrained_model_name_or_path = place
            kwargs.pop("subfolder", None)
        cls._refuse_adapter(pretrained_model_name_or_path, place, kwargs)
        # They are reported below, with what else doesn't fit.
        kwargs["ignore_mismatched_sizes"] = True
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(f"{place}: the weights can't be read: {error}") from error
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if names := sorted(map(str, info[kind])):
                raise ValueError(
                    f"{place}: the weights do not fit the config, {kind.replace('_', ' ')}: "
                    f"{', '.join(names[:20])}. Take config and weights from one place, whole and unedited."
                )
        check_finite(model, place)
        return (model, info) if output_loading_info else model

    @classmethod
    def _refuse_adapter(cls, name_or_path: Any, place: str, options: dict[str, Any]) -> None:
        # With peft installed transformers would load the model that the adapter names, from wherever that is.
        hub_options = {name: options[name] for name in _HUB_ARGUMENTS if options.get(name) is not None}
        if find_adapter_config_file(name_or_path, **hub_options) is not None:
            raise ValueError(f"{place} has an adapter_config.json, but a VQ-VAE takes no adapters. Remove it.")

    @property
    def receptive_field(self) -> int:
        """Side in pixels of the part of an image that one code depends on."""
        return self.config.receptive_field

    @property
    def codes_hash(self) -> str:
        """
        The first 16 hex digits of SHA-256 over all that decides tokens and their images: weights, codebook and sizes.
        Data, image processors and checkpoints that belong together agree on it. Takes milliseconds: keep it.
        """
        fields = {name: getattr(self.config, name) for name in _TOKEN_FIELDS}
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if name.rpartition(".")[2] not in _TRAINING_BUFFERS:
                digest.update(f"{name} {tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def forward(self, pixel_values: torch.FloatTensor) -> ImageGPTVQVAEOutput:
        """
        Args:
            pixel_values: images (B, 3, H, W) in [-1, 1], H and W multiples of `downsampling`.

        Raises:
            ValueError: `pixel_values` is not that.
        """
        self._check_pixel_values(pixel_values)
        vectors = self.encoder(pixel_values)
        batch, width, height_of_grid, width_of_grid = vectors.shape
        flat = vectors.permute(0, 2, 3, 1).reshape(-1, width)
        codes, chosen = self.quantizer(flat)
        chosen = chosen.to(flat.dtype)
        commitment_loss = F.mse_loss(flat.float(), chosen.float())
        # The gradient of what the decoder reads goes to what the encoder gave.
        read = flat + (chosen - flat).detach() if torch.is_grad_enabled() else chosen
        quantized = read.view(batch, height_of_grid, width_of_grid, width).permute(0, 3, 1, 2)
        reconstruction = self.decoder(quantized.contiguous())
        reconstruction_loss = F.mse_loss(reconstruction.float(), pixel_values.float())
        return ImageGPTVQVAEOutput(
            loss=reconstruction_loss + self.config.commitment_weight * commitment_loss,
            reconstruction=reconstruction,
            codes=codes.view(batch, height_of_grid, width_of_grid),
            reconstruction_loss=reconstruction_loss,
            commitment_loss=commitment_loss,
        )

    def update_codebook(self) -> None:
        """
        Moves the codes with what the forward passes since the last call saw, once for each step of the optimizer. All
        processes of a distributed training must call it together: the result is that of one process with all images.

        Raises:
            ValueError: there was no forward pass in training mode.
        """
        self.quantizer.update()

    def encode(self, pixels: np.ndarray | torch.Tensor) -> torch.LongTensor:
        """
        Codes of images, int64 of shape (B, h, w), on the model's device. The same images give the same codes on the
        same device. Another number of images at once, or another device, may round differently, and a vector that lies
        between two codes then go to the other one.

        Args:
            pixels: RGB images, uint8 of shape (B, H, W, 3).

        Raises:
            ValueError: `pixels` is not that, or H or W is no multiple of `downsampling`.
        """
        pixels = self._checked_pixels(pixels)
        height, width = self.config.grid_of(*pixels.shape[1:3])
        with torch.inference_mode():
            codes = [self._encode_block(block) for block in self._blocks(pixels, pixels.shape[1] * pixels.shape[2])]
            codes = torch.cat(codes) if codes else torch.empty(0, height, width, dtype=torch.int64, device=self.device)
        # A tensor of inference mode can't be saved for a backward pass, as labels are.
        return codes.clone()

    def decode(self, codes: np.ndarray | torch.Tensor) -> torch.Tensor:
        """
        Images of codes, uint8 of shape (B, H, W, 3), on the model's device.

        Args:
            codes: integers of shape (B, h, w) in 0 ... `codebook_size` - 1.

        Raises:
            ValueError: `codes` is not that.
        """
        codes = self._checked_codes(codes)
        scale = self.config.downsampling
        height, width = codes.shape[1] * scale, codes.shape[2] * scale
        with torch.inference_mode():
            images = [self._decode_block(block) for block in self._blocks(codes, height * width)]
            images = (
                torch.cat(images)
                if images
                else torch.empty(0, height, width, 3, dtype=torch.uint8, device=self.device)
            )
        return images.clone()

    def levels(self, reconstruction: torch.Tensor) -> torch.Tensor:
        """The image, uint8 of shape (B, H, W, 3), of a reconstruction (B, 3, H, W), rounded and clipped."""
        levels = ((reconstruction.float() + 1) * 127.5).round().clamp(0, 255)
        return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def _encode_block(self, pixels: torch.Tensor) -> torch.Tensor:
        vectors = self.encoder((pixels.to(self.device).permute(0, 3, 1, 2) / 127.5 - 1).to(self.dtype))
        batch, width, *grid = vectors.shape
        return nearest_codes(vectors.permute(0, 2, 3, 1).reshape(-1, width), self.quantizer.codebook).view(
            batch, *grid
        )

    def _decode_block(self, codes: torch.Tensor) -> torch.Tensor:
        vectors = self.quantizer.codebook[codes.to(self.device)].to(self.dtype)
        return self.levels(self.decoder(vectors.permute(0, 3, 1, 2).contiguous()))

    def _blocks(self, batch: torch.Tensor, pixels_of_one: int) -> Iterator[torch.Tensor]:
        rows = max(1, _BLOCK_PIXELS // pixels_of_one)
        return iter(batch.split(rows)) if len(batch) else iter(())

    def _checked_pixels(self, pixels: Any) -> torch.Tensor:
        pixels = torch.from_numpy(np.require(pixels, requirements="CW")) if isinstance(pixels, np.ndarray) else pixels
        is_rgb = torch.is_tensor(pixels) and pixels.dtype == torch.uint8 and pixels.dim() == 4 and pixels.shape[3] == 3
        if not is_rgb:
            raise ValueError(f"`pixels` must be uint8 of shape (images, height, width, 3), got {_described(pixels)}.")
        return pixels

    def _checked_codes(self, codes: Any) -> torch.Tensor:
        if isinstance(codes, np.ndarray) and codes.dtype.kind in "iu":
            codes = torch.from_numpy(codes.astype(np.int64))
        is_integer = torch.is_tensor(codes) and not (codes.is_floating_point() or codes.is_complex())
        if not is_integer or codes.dtype == torch.bool or codes.dim() != 3 or not codes.shape[1] * codes.shape[2]:
            raise ValueError(f"`codes` must be integers of shape (images, rows, columns), got {_described(codes)}.")
        codes = codes.long()
        is_outside = (codes < 0) | (codes >= self.config.codebook_size)
        if bool(is_outside.any()):
            image, row, column = is_outside.nonzero()[0].tolist()
            raise ValueError(
                f"`codes` must be from 0 to {self.config.codebook_size - 1}, got {int(codes[image, row, column])} at "
                f"row {row}, column {column} of image {image}."
            )
        return codes

    def _check_pixel_values(self, pixel_values: Any) -> None:
        is_float = torch.is_tensor(pixel_values) and pixel_values.is_floating_point()
        if not is_float or pixel_values.dim() != 4 or pixel_values.shape[1] != 3 or not len(pixel_values):
            raise ValueError(
                "`pixel_values` must be floats in [-1, 1] of shape (images, 3, height, width), got "
                f"{_described(pixel_values)}."
            )
        self.config.grid_of(*pixel_values.shape[2:])


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray) or torch.is_tensor(value):
        return f"{value.dtype} of shape {list(value.shape)}"
    return type(value).__name__


__all__ = ["ImageGPTVQVAEModel", "ImageGPTVQVAEOutput", "nearest_codes"]
