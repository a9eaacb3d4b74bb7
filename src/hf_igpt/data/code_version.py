"""The version of the code that makes palettes and tokens: what is kept on disk is not taken for that of other code."""

import hashlib
from pathlib import Path


def code_version() -> str:
    """A hash over the modules between an image and its tokens, and Pillow's version, which decodes and resizes."""
    import PIL

    digest = hashlib.sha256(PIL.__version__.encode())
    for path in code_files():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def code_files() -> list[Path]:
    """The source files of those modules."""
    from hf_igpt import (
        configuration_igpt_vqvae,
        image_processing_igpt,
        image_reading_igpt,
        modeling_igpt_vqvae,
        palette_igpt,
        token_kinds_igpt,
    )
    from hf_igpt.data import color_kmeans, columns, palette_fitting, tokenization

    of_images = (image_processing_igpt, image_reading_igpt, color_kmeans, columns, palette_fitting, tokenization)
    of_tokens = (token_kinds_igpt, palette_igpt, configuration_igpt_vqvae, modeling_igpt_vqvae)
    return [Path(str(module.__file__)) for module in (*of_images, *of_tokens)]
