"""What the page's controls do: plain functions from what a user gave to what the page shows, without Gradio."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from hf_igpt.demo.checkpoints import Checkpoint
from hf_igpt.demo.drawing import Progress, draw
from hf_igpt.demo.features import nearest_neighbours, probe_curve
from hf_igpt.demo.html import Picture, figures, message, problem
from hf_igpt.demo.inputs import KEEP_UNPAINTED, read_drawing, read_region, read_settings, read_upload
from hf_igpt.demo.likelihood import cell_bits, heat_map
from hf_igpt.demo.palettes import Quantized, as_checkpoint_sees, with_own_palettes
from hf_igpt.plots import palette_swatch


EDITOR_SIDE = 288
# Pages can't be redrawn faster to any use.
SECONDS_BETWEEN_VIEWS = 0.1
NO_IMAGE = "No image: whole images are drawn."


@dataclass(frozen=True)
class Chosen:
    """
    What choosing an image changes.

    Args:
        image: RGB; None for no image.
        view: the image, and what the model sees of it.
        canvas: an editor's background to paint the hole on.
        status: what happened.
    """

    image: Image.Image | None
    view: str
    canvas: Image.Image
    status: str


class Stops:
    """Which users have asked for a stop, by their session."""

    def __init__(self):
        self._running: dict[str, threading.Event] = {}

    def start(self, session: str) -> threading.Event:
        """An event for a new run of this user, set when the run is to stop."""
        event = self._running[session] = threading.Event()
        return event

    def stop(self, session: str) -> None:
        """Stops the user's run, if there is one."""
        if (event := self._running.get(session)) is not None:
            event.set()

    def end(self, session: str, event: threading.Event) -> None:
        """Forgets a run."""
        if self._running.get(session) is event:
            del self._running[session]


def choose_upload(checkpoint: Checkpoint, path: str | None) -> Chosen:
    """Reads a file. Raises ValueError, see `read_upload`."""
    return chosen(checkpoint, read_upload(path), "your file")


def choose_drawing(checkpoint: Checkpoint, value: Mapping[str, Any] | None) -> Chosen:
    """Takes what was drawn. Raises ValueError, see `read_drawing`."""
    return chosen(checkpoint, read_drawing(value), "your drawing")


def choose_example(checkpoint: Checkpoint, number: Any) -> Chosen:
    """
    Raises:
        ValueError: there is no such example.
    """
    count = len(checkpoint.examples)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
        raise ValueError(f"Example must be a whole number from 0 to {count - 1}, got {str(number)[:100]!r}.")
    example = checkpoint.examples[number]
    return chosen(checkpoint, example.image, example.caption)


def chosen(checkpoint: Checkpoint, image: Image.Image | None, name: str) -> Chosen:
    """An image, ready to be drawn on."""
    height, width = checkpoint.grid
    factor = max(1, EDITOR_SIDE // max(height, width))
    if image is None:
        return Chosen(None, "", Image.new("RGB", (width * factor, height * factor)), message(NO_IMAGE))
    _, seen = as_checkpoint_sees(checkpoint, image)
    view = figures(
        [
            Picture(image, f"The image you chose: {name}", "your image"),
            Picture(seen.image, "The same image as the model sees it", f"as the model sees it, {_sides(seen.image)}"),
        ],
        kind="middle",
    )
    canvas = seen.image.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    return Chosen(image, view, canvas, message(f"Chosen: {name}."))


def surprise_view(checkpoint: Checkpoint, image: Image.Image | None) -> str:
    """The heat map of an image's likelihood."""
    if image is None:
        return ""
    bits, cell, side = cell_bits(checkpoint, image), checkpoint.cell, checkpoint.processor.cell_size
    whole = (
        f"All {cell}s: {bits.sum():.0f} bits, {bits.mean():.2f} each; a model that knows nothing needs "
        f"{math.log2(checkpoint.model.config.num_values) * checkpoint.model.config.num_channels:.2f}."
        if checkpoint.is_causal
        else f"Mean {bits.mean():.2f} bits, each {cell} scored while it and half of the others are hidden."
    )
    which = cell if side == 1 else f"{cell} of {side} x {side} pixels"
    words = f"surprise at each {which}, 0 (dark) to {bits.max():.1f} bits (bright). {whole}"
    return figures([Picture(heat_map(bits), f"Heat map: {words}", words)], kind="middle")


def generate(
    checkpoint: Checkpoint,
    image: Image.Image | None,
    keep: Any,
    rows_kept: Any,
    hole: Mapping[str, Any] | None,
    numbers: Mapping[str, Any],
    should_stop: Callable[[], bool],
) -> Iterator[tuple[str, str]]:
    """
    Draws, and shows what is there as it comes.

    Args:
        numbers: the arguments of `read_settings`.

    Yields:
        The images and a line of text, as HTML.

    Raises:
        ValueError: as `read_settings` and `read_region`.
    """
    settings = read_settings(checkpoint, **numbers)
    # Of no image nothing is kept, and nothing need be painted; a value outside its control is a mistake all the same.
    is_free = image is None and keep == KEEP_UNPAINTED
    region = None if is_free else read_region(checkpoint, keep, rows_kept, hole)
    shown, progress = -math.inf, None
    for progress in draw(checkpoint, image, region, settings, should_stop):
        if progress.share < 1 and time.monotonic() - shown >= SECONDS_BETWEEN_VIEWS:
            yield _drawn(checkpoint, progress), message(f"Drawing: {100 * progress.share:.0f} % done.")
            shown = time.monotonic()
    if progress is None or progress.share < 1:
        yield _drawn(checkpoint, progress) if progress else "", message("Stopped. What is grey was not drawn.")
    else:
        count = f"{settings.num_images} images" if settings.num_images > 1 else "1 image"
        yield _drawn(checkpoint, progress), message(f"Done: {count}, seed {settings.seed}.")


def _drawn(checkpoint: Checkpoint, progress: Progress) -> str:
    percent = "" if progress.share == 1 else f", {100 * progress.share:.0f} % done"
    pictures = progress.pictures(checkpoint)
    return figures([Picture(image, f"Drawn image {n}{percent}") for n, image in enumerate(pictures, start=1)])


def palette_view(checkpoint: Checkpoint, image: Image.Image | None) -> str:
    """The checkpoint's palette, and an image in it and in palettes of its own."""
    processor = checkpoint.processor
    tokens = f"tokens of the checkpoint: {processor.description}"
    swatch = []
    if processor.palette is not None:
        words = f"The {processor.num_colors} colours of the checkpoint's palette, from dark to bright"
        swatch = [Picture(palette_swatch(processor.palette), words, tokens)]
    if image is None:
        return figures(swatch) + message("Choose an image in the first tab to see what palettes do to it.")
    small, seen = as_checkpoint_sees(checkpoint, image)
    original = Picture(small, "The image at the size that the model sees", f"all colours, {_sides(small)}")
    own = with_own_palettes(image)
    return "".join(
        (
            figures([*swatch, original, _seen(seen, tokens)]),
            message(
                "Below: 2, 8, 32 and 512 colours fitted to this image alone (k-means, as for a training set), at "
                "up to 64 pixels a side. More colours cost the model more to tell apart, fewer lose the picture."
            ),
            figures([_quantized(quantized, "fitted to the image") for quantized in own]),
        )
    )


def _seen(quantized: Quantized, tokens: str) -> Picture:
    words = f"{tokens}, {_loss(quantized)}"
    return Picture(quantized.image, f"The image in {words}", words)


def _sides(image: Image.Image) -> str:
    return f"{image.height} x {image.width}"


def _loss(quantized: Quantized) -> str:
    return "nothing lost" if math.isinf(quantized.psnr) else f"PSNR {quantized.psnr:.1f} dB"


def _quantized(quantized: Quantized, whose: str) -> Picture:
    fewer = f" (it has only {quantized.num_colors})" if quantized.num_colors < quantized.asked else ""
    words = f"{quantized.asked} colours {whose}{fewer}, {_loss(quantized)}"
    return Picture(quantized.image, f"The image in {words}", words)


def probe_view(checkpoint: Checkpoint) -> str:
    """The probe's accuracy by layer."""
    curve = probe_curve(checkpoint)
    if curve is None:
        return message("There are no results of a probe of this checkpoint: `hf-igpt probe` makes them.")
    figure, words = curve
    return figures([Picture(figure, words)], kind="wide")


def neighbours_view(checkpoint: Checkpoint, image: Image.Image | None, layer: Any) -> str:
    """
    The images nearest to the chosen one.

    Raises:
        ValueError: there is no such layer.
    """
    if image is None:
        return message("Choose an image in the first tab to see which ones are near it.")
    _, seen = as_checkpoint_sees(checkpoint, image)
    near = nearest_neighbours(checkpoint, image, layer)
    pictures = [Picture(seen.image, "The image you chose", "your image")]
    pictures += [
        Picture(
            neighbour.example.image,
            f"Neighbour {place}: {neighbour.example.caption}, similarity {neighbour.similarity:.2f}",
            f"{neighbour.example.caption}: {neighbour.similarity:.2f}",
        )
        for place, neighbour in enumerate(near, start=1)
    ]
    count = len(checkpoint.references)
    return figures(pictures) + message(f"Nearest of {count} images by cosine similarity of the features.")


__all__ = [
    "Chosen",
    "Stops",
    "choose_drawing",
    "choose_example",
    "choose_upload",
    "chosen",
    "generate",
    "neighbours_view",
    "palette_view",
    "probe_view",
    "problem",
    "surprise_view",
]
