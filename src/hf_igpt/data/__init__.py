"""Images to palettes and tokens."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from hf_igpt.data.palette_fitting import FittedPalette, fit_palette
    from hf_igpt.data.sources import ImageSource, load_images
    from hf_igpt.data.token_store import load_tokens, save_tokens
    from hf_igpt.data.tokenization import tokenize

_HOMES = {
    "FittedPalette": "palette_fitting",
    "fit_palette": "palette_fitting",
    "ImageSource": "sources",
    "load_images": "sources",
    "load_tokens": "token_store",
    "save_tokens": "token_store",
    "tokenize": "tokenization",
}

__all__ = [
    "FittedPalette",
    "ImageSource",
    "fit_palette",
    "load_images",
    "load_tokens",
    "save_tokens",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"hf_igpt.data.{_HOMES[name]}"), name)
