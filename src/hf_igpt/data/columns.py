"""Which column holds the images and which the classes, and how one image is read from its row."""

import hashlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import Features
    from PIL.Image import Image


# The last is WebDataset's.
LABEL_NAMES = ("label", "labels", "fine_label", "coarse_label", "class", "target", "cls")


def find_image_column(features: "Features", image_column: str | None = None) -> str:
    """The column with the images.

    Args:
        features: Columns of the data set.
        image_column: The column to use; None finds the only one with the type `datasets.Image`.

    Raises:
        ValueError: If it is missing, ambiguous or doesn't hold images; lists the columns.
    """
    images = [name for name, feature in features.items() if _is_image(feature)]
    if image_column is None:
        if len(images) == 1:
            return images[0]
        found = "several columns hold images" if images else "no column holds images"
        raise ValueError(f"`image_column` must be given: {found}. Columns: {_described(features)}.")
    if image_column not in features:
        raise ValueError(f"`image_column` {image_column!r} is not a column. Columns: {_described(features)}.")
    if image_column not in images and not _is_bytes(features[image_column]):
        raise ValueError(
            f"`image_column` {image_column!r} doesn't hold images or their bytes (a text is not opened as a path or "
            f"an address). Columns: {_described(features)}."
        )
    return image_column


def find_label_column(features: "Features", label_column: str | None = None) -> str | None:
    """The column with the class, or None.

    Args:
        features: Columns of the data set.
        label_column: The column to use, or "none"; None finds the only one with the type `datasets.ClassLabel`, else
            the only one with a usual name.

    Raises:
        ValueError: If it is missing or ambiguous; lists the columns.
    """
    from datasets import ClassLabel, Image

    if label_column == "none":
        return None
    if label_column is not None:
        if label_column not in features:
            raise ValueError(f"`label_column` {label_column!r} is not a column. Columns: {_described(features)}.")
        if isinstance(features[label_column], Image):
            raise ValueError(f"`label_column` {label_column!r} holds images. Columns: {_described(features)}.")
        return label_column

    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    classes = classes or [name for name in features if name in LABEL_NAMES]
    if len(classes) > 1:
        raise ValueError(
            f"`label_column` must be given, or 'none': {', '.join(classes)} could be it. "
            f"Columns: {_described(features)}."
        )
    return classes[0] if classes else None


def read_image(value: Any, image_roots: Iterable[str] = ()) -> "Image":
    """Opens the image of one row, read with `datasets.Image(decode=False)`: bytes or {"bytes", "path"}.

    A row is data and may come from anywhere. So nothing is fetched, and a file is read only below a folder that the
    caller named.

    Raises:
        ValueError: If there is no image, it is damaged, or its path is an address or outside `image_roots`.
    """
    from hf_igpt.image_processing_igpt import open_image

    if isinstance(value, (bytes, bytearray)):
        return open_image(bytes(value))
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, None)
    if content is not None:
        return open_image(content)
    if path is None:
        raise ValueError("the row holds no image")
    return open_image(_local_path(path, image_roots))


def damaged_row(split: str, row: int, value: Any, reason: Exception) -> dict[str, Any]:
    """What is recorded of a row whose image can't be used: {"split", "row", "file", "reason"}."""
    return {"split": split, "row": row, "file": row_file(value), "reason": str(reason)}


def damage_message(where: dict[str, Any]) -> str:
    """A record of `damaged_row` in words."""
    file = f", file {where['file']}" if where["file"] else ""
    return f"The image in row {where['row']} of the split {where['split']!r}{file} can't be used: {where['reason']}"


def row_file(value: Any) -> str | None:
    """Name of the file a row's image came from, where the row tells."""
    return value.get("path") if isinstance(value, dict) else None


def row_key(value: Any) -> int:
    """A number that depends on the row's bytes (else its path) alone, below 2**63."""
    content = value if isinstance(value, (bytes, bytearray)) else None
    if isinstance(value, dict):
        content = value["bytes"] if value.get("bytes") is not None else (value.get("path") or "").encode()
    return int.from_bytes(hashlib.blake2b(content or b"", digest_size=8).digest(), "little") >> 1


def _local_path(path: str, image_roots: Iterable[str]) -> str:
    if "://" in path or "::" in path:
        raise ValueError(f"the row holds the address {path!r} in place of an image; addresses are never fetched")
    resolved = os.path.abspath(path)
    for root in image_roots:
        if os.path.commonpath([resolved, os.path.abspath(root)]) == os.path.abspath(root):
            return resolved
    raise ValueError(
        f"the row holds the path {path!r} in place of an image, outside the folders that may be read; "
        "name its folder in `image_roots` to read it"
    )


def _is_image(feature: Any) -> bool:
    from datasets import Image

    return isinstance(feature, Image)


def _is_bytes(feature: Any) -> bool:
    from datasets import Value

    if isinstance(feature, dict):
        return set(feature) <= {"bytes", "path"} and _is_bytes(feature.get("bytes"))
    return isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")


def _described(features: "Features") -> str:
    return ", ".join(f"{name} ({_type_name(feature)})" for name, feature in features.items())


def _type_name(feature: Any) -> str:
    return getattr(feature, "dtype", None) or type(feature).__name__
