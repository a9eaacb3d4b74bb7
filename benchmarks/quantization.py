"""Quantization: `IGPTImageProcessor` against transformers' ImageGPT processor on the same images and palette.

    python benchmarks/quantization.py --output quantization.json

The images are random RGB pixels, the hardest case: nearly every pixel is a new colour. Four ways are timed in turns:

- native, its best batch: 40 images a call, warm;
- native, one call with all the images;
- ours, cold: a palette never seen before, and everything built inside the timing;
- ours, warm: the same processor again.

First the tokens are compared. Native works in float64 on values scaled to [-1, 1] and expands the square, so two
colours equally far from a pixel can round either way: a token may differ only where the two distances differ by less
than 1e-6 squared levels, and such ties are counted.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image
from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil

from hf_igpt import IGPTImageProcessor
from hf_igpt.results import hardware, write_results


NATIVE_BATCH = 40
TIE = 1e-6


def run_native(native: ImageGPTImageProcessorPil, images: list[Image.Image], batch: int) -> np.ndarray:
    parts = [native(images[i : i + batch], return_tensors="pt")["input_ids"] for i in range(0, len(images), batch)]
    return np.concatenate([part.numpy() for part in parts])


def run_ours(ours: IGPTImageProcessor, images: list[Image.Image]) -> np.ndarray:
    return ours(images, return_tensors="pt")["input_ids"].numpy()


def run_ours_cold(palette: np.ndarray, size: dict[str, int], images: list[Image.Image]) -> np.ndarray:
    return run_ours(IGPTImageProcessor(size=size, palette=palette), images)


def count_ties(ours: np.ndarray, native: np.ndarray, pixels: np.ndarray, palette: np.ndarray) -> int:
    """The number of tokens that differ; an AssertionError if one differs by more than rounding."""
    where = np.flatnonzero(ours.ravel() != native.ravel())
    points = pixels.reshape(-1, 3)[where].astype(np.float64)
    distances = [((points - palette[tokens.ravel()[where]]) ** 2).sum(axis=1) for tokens in (ours, native)]
    assert np.all(np.abs(distances[0] - distances[1]) < TIE), "tokens differ where the distances do"
    return len(where)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_megabytes(work: Callable[[], object]) -> float | None:
    """Growth of this process's resident memory at its peak during the work; None outside Linux."""

    def status(field: str) -> int:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

    try:
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")  # forget the peak so far
        before = status("VmRSS")
        work()
        return (status("VmHWM") - before) / 1e6
    except OSError:
        return None


def measure(num_images: int, side: int, num_colors: int, repeats: int, single_call: bool) -> dict[str, object]:
    rng = np.random.default_rng(0)
    size = {"height": side, "width": side}
    pixels = rng.integers(0, 256, (num_images, side, side, 3), dtype=np.uint8)
    images = [Image.fromarray(image) for image in pixels]
    palettes = [rng.uniform(0, 255, (num_colors, 3)) for _ in range(repeats + 2)]

    memory = peak_megabytes(partial(run_ours_cold, palettes[-1], size, images))
    ours = IGPTImageProcessor(size=size, palette=palettes[-2])
    native = ImageGPTImageProcessorPil(size=size, clusters=ours.clusters)
    ties = count_ties(run_ours(ours, images), run_native(native, images, NATIVE_BATCH), pixels, palettes[-2])

    seconds: dict[str, list[float]] = {"native_best_batch": [], "ours_cold": [], "ours_warm": []}
    for palette in palettes[:repeats]:
        seconds["native_best_batch"].append(timed(partial(run_native, native, images, NATIVE_BATCH)))
        seconds["ours_cold"].append(timed(partial(run_ours_cold, palette, size, images)))
        seconds["ours_warm"].append(timed(partial(run_ours, ours, images)))
    if single_call:
        seconds["native_single_call"] = [timed(partial(run_native, native, images, num_images))]
    return {
        "num_images": num_images,
        "image_side": side,
        "num_colors": num_colors,
        "tokens_equal_but_for_ties": ties,
        "peak_megabytes_ours": memory,
        "images_per_second": {name: num_images / statistics.median(times) for name, times in seconds.items()},
        "seconds": seconds,
    }


def print_table(metrics: dict[str, object]) -> None:
    rates, machine, side = metrics["images_per_second"], hardware(), metrics["image_side"]
    print(
        f"{metrics['num_images']} RGB images of {side} x {side} random pixels, {metrics['num_colors']} colours; "
        f"{machine['cpu']}, {machine['cores']} cores"
    )
    print("\n| | images/s | ours cold | ours warm |\n|---|---|---|---|")
    for name in ("native_best_batch", "native_single_call"):
        if name in rates:
            ratios = [rates[ours] / rates[name] for ours in ("ours_cold", "ours_warm")]
            print(f"| {name.replace('_', ' ')} | {rates[name]:,.0f} | {ratios[0]:,.0f}x | {ratios[1]:,.0f}x |")
    for name in ("ours_cold", "ours_warm"):
        print(f"| {name.replace('_', ' ')} | {rates[name]:,.0f} | | |")
    memory = metrics["peak_megabytes_ours"]
    print(f"\nTokens equal but for {metrics['tokens_equal_but_for_ties']} ties. ", end="")
    print("" if memory is None else f"Peak memory of ours, everything built: {memory:.0f} MB.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="paired runs; the median counts (default 5)")
    parser.add_argument("--num_images", type=int, default=1000, help="images (default 1000)")
    parser.add_argument("--image_side", type=int, default=32, help="height and width in pixels (default 32)")
    parser.add_argument("--num_colors", type=int, default=512, help="palette size (default 512)")
    parser.add_argument(
        "--skip_single_call", action="store_true", help="leave out native's single call, which needs 20 GB"
    )
    parser.add_argument("--output", help="results JSON to write")
    arguments = parser.parse_args()
    metrics = measure(
        arguments.num_images,
        arguments.image_side,
        arguments.num_colors,
        arguments.repeats,
        not arguments.skip_single_call,
    )
    print_table(metrics)
    if arguments.output:
        write_results(arguments.output, metrics=metrics, arguments=vars(arguments), seeds={"seed": 0})


if __name__ == "__main__":
    main()
