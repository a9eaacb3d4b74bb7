"""The kinds of tokens: three ways to turn the pixels of images into a grid of tokens, and tokens into pixels.

Whatever comes after an image processor (data sets, models, objectives, samples) reads the same few properties of a
kind and never asks which one it is.
"""

from typing import Any, Protocol

import numpy as np

from .palette_igpt import PaletteLookup, as_palette, palette_hash


PALETTE, RGB, VQVAE = "palette", "rgb", "vqvae"
# Values of a channel of an 8-bit image.
LEVELS = 256


class TokenKind(Protocol):
    """
    Pixels to tokens and back.

    Attributes:
        kind: one of `KINDS`.
        words: what the values are, for people.
        num_values: values that a token can have, 0 to `num_values - 1`.
        num_channels: tokens of a cell of the grid.
        cell_size: pixels of a cell's side.
        is_exact: whether `decode` gives back the pixels that `encode` was given.
        is_movable: whether an image that is mirrored or moved by whole cells has the same tokens, mirrored or moved.
        token_hash: the same for all that give the same tokens the same meaning, and for no others.
    """

    kind: str
    words: str
    num_values: int
    num_channels: int
    cell_size: int
    is_exact: bool
    is_movable: bool
    token_hash: str

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Tokens, integers of shape (images, tokens), of pixels, uint8 of shape (images, height, width, 3)."""
        ...

    def decode(self, tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """Pixels, uint8 of shape (images, height, width, 3), of tokens of shape (images, tokens)."""
        ...


class PaletteTokens:
    """
    A token for a pixel: the index of the nearest colour, exactly (see `PaletteLookup`). The paper's own tokens.

    Args:
        palette: RGB colours of shape (colours, 3) in 0...255.

    Raises:
        ValueError: as `as_palette`.
    """

    kind, words = PALETTE, "colours"
    num_channels, cell_size, is_exact, is_movable = 1, 1, False, True

    def __init__(self, palette: Any):
        # A copy of its own, which nobody can change behind the lookup.
        self.palette = np.array(as_palette(palette))
        self.palette.setflags(write=False)
        self._lookup: PaletteLookup | None = None

    @property
    def num_values(self) -> int:
        """The number of colours."""
        return len(self.palette)

    @property
    def token_hash(self) -> str:
        """The palette's hash."""
        return palette_hash(self.palette)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """As in `TokenKind`; uint16."""
        if self._lookup is None:
            self._lookup = PaletteLookup(self.palette)
        return self._lookup.quantize(pixels).reshape(len(pixels), -1)

    def decode(self, tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """As in `TokenKind`: each colour rounded to whole levels."""
        return np.rint(self.palette).astype(np.uint8)[tokens.reshape(-1, *grid)]

    def __getstate__(self) -> dict[str, Any]:
        # The lookup is large and its content depends on what was asked: workers and fingerprints do without it.
        return {**self.__dict__, "_lookup": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.palette.setflags(write=False)


class RGBTokens:
    """Three tokens for a pixel, its levels of red, green and blue in that order: nothing is lost."""

    kind, words, token_hash = RGB, "levels of red, green and blue", RGB
    num_values, num_channels, cell_size, is_exact, is_movable = LEVELS, 3, 1, True, True

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """As in `TokenKind`; uint8."""
        return pixels.reshape(len(pixels), -1)

    def decode(self, tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """As in `TokenKind`."""
        return tokens.reshape(-1, *grid, 3).astype(np.uint8)


class CodeTokens:
    """
    A token for a square of pixels: the code that a VQ-VAE gives it.

    Args:
        vqvae: an `ImageGPTVQVAEModel`; it is set to evaluation mode.
    """

    kind, words = VQVAE, "codes of a VQ-VAE"
    num_channels, is_exact, is_movable = 1, False, False

    def __init__(self, vqvae: Any):
        self.vqvae = vqvae.eval()

    @property
    def num_values(self) -> int:
        """The size of the codebook."""
        return self.vqvae.config.codebook_size

    @property
    def cell_size(self) -> int:
        """How many times smaller the grid is than the image."""
        return self.vqvae.config.downsampling

    @property
    def token_hash(self) -> str:
        """The hash of the VQ-VAE's weights."""
        return self.vqvae.codes_hash

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """As in `TokenKind`; int64."""
        return self.vqvae.encode(pixels).cpu().numpy().reshape(len(pixels), -1)

    def decode(self, tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """As in `TokenKind`: what the VQ-VAE makes of the codes."""
        import torch

        codes = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64)).view(-1, *grid)
        return self.vqvae.decode(codes).cpu().numpy()


TOKEN_KINDS: dict[str, type[TokenKind]] = {made.kind: made for made in (PaletteTokens, RGBTokens, CodeTokens)}
KINDS = tuple(TOKEN_KINDS)


def describe_tokens(token_kind: str, num_values: int) -> str:
    """Tokens in words, such as "512 colours"."""
    return f"{num_values} {TOKEN_KINDS[token_kind].words}"


__all__ = [
    "KINDS",
    "LEVELS",
    "PALETTE",
    "RGB",
    "TOKEN_KINDS",
    "VQVAE",
    "CodeTokens",
    "PaletteTokens",
    "RGBTokens",
    "TokenKind",
    "describe_tokens",
]
