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
    from hf_igpt import image_processing_igpt, image_reading_igpt, palette_igpt
    from hf_igpt.data import color_kmeans, columns, palette_fitting, tokenization

    modules = (image_processing_igpt, image_reading_igpt, palette_igpt, color_kmeans, columns, palette_fitting)
    return [Path(str(module.__file__)) for module in (*modules, tokenization)]
