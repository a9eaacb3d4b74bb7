"""How many colours a palette should have: the same small model at equal compute with palettes of several sizes."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_igpt.data.options import token_layout
from hf_igpt.training.cost import training_flops
from hf_igpt.training.pretraining import model_config


if TYPE_CHECKING:
    import numpy as np

    from hf_igpt.training.arguments import PretrainArguments


def check_distinct(counts: "np.ndarray", sizes: Sequence[int]) -> None:
    """
    Raises ValueError for palettes of more colours than the training images have.

    Args:
        counts: how often each colour occurs, as `count_colors` gives it.
        sizes: colours of the palettes.
    """
    import numpy as np

    distinct = int(np.count_nonzero(counts))
    if too_large := [size for size in sizes if size > distinct]:
        raise ValueError(
            f"`palette_sizes` must be at most the {distinct} distinct colours that the training images have at this "
            f"size, got {', '.join(map(str, too_large))}. Leave these out."
        )


def equal_steps(arguments: "PretrainArguments", sizes: Sequence[int]) -> dict[int, int]:
    """
    Optimizer steps for each palette, so that all models train with the FLOPs that `max_steps` take with the smallest:
    the output head grows with the palette, and costs steps.

    Raises:
        ValueError: the largest palette would have no step left.
    """
    layouts = {size: token_layout(dataclasses.replace(arguments, num_colors=size)) for size in sizes}
    costs = {size: training_flops(model_config(arguments, layout)) for size, layout in layouts.items()}
    budget = (arguments.max_steps or 0) * min(costs.values())
    steps = {size: round(budget / cost) for size, cost in costs.items()}
    if min(steps.values()) < 1:
        raise ValueError(f"`max_steps` {arguments.max_steps} leaves no step for {max(sizes)} colours. Give more.")
    return steps


def sweep_row(
    run: Mapping[str, Any],
    fitted: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Any]],
    probe: Mapping[str, Any],
) -> dict[str, Any]:
    """
    The figures of one palette, for a results JSON.

    Args:
        run, fitted, probe: what pretraining, the palette and the probe wrote as results.
        scores: what `evaluate` wrote for each density of the colours.
    """
    uniform = scores["uniform"]["metrics"]
    best = probe["metrics"]["best"]
    return {
        "num_colors": fitted["metrics"]["num_colors"],
        "palette_hash": fitted["metrics"]["palette_hash"],
        "psnr_db": fitted["metrics"]["psnr_db"],
        "nats_per_token": uniform["nats_per_token"],
        "nats_per_token_standard_error": uniform["nats_per_token_standard_error"],
        "uniform_nats_per_token": uniform["uniform_nats_per_token"],
        "unigram_nats_per_token": uniform["unigram_nats_per_token"],
        "bits_per_dim": {density: score["metrics"]["bits_per_dim"] for density, score in scores.items()},
        "bits_per_dim_of_colors": {
            density: score["metrics"]["bits_per_dim_of_colors"] for density, score in scores.items()
        },
        "color_smoothing": scores["empirical"]["metrics"]["color_smoothing"],
        "probe_layer": best["layer"],
        "probe_validation_accuracy": best["validation_accuracy"],
        "probe_test_accuracy": best["test_accuracy"],
        "optimizer_steps": run["metrics"]["optimizer_steps"],
        "training_flops": run["metrics"]["training_flops"],
        "parameters": run["metrics"]["parameters"],
        "training_seconds": run["training_seconds"],
    }


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row of Markdown for each palette."""
    lines = [
        "| colours | PSNR | nats/token | bits/dim, uniform | bits/dim, empirical | of these the colours | probe "
        "| steps | TFLOP |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        psnr = "exact" if row["psnr_db"] is None else f"{row['psnr_db']:.1f} dB"
        bits, of_colors = row["bits_per_dim"], row["bits_per_dim_of_colors"]
        lines.append(
            f"| {row['num_colors']} | {psnr} | {row['nats_per_token']:.3f} | {bits['uniform']:.3f} "
            f"| {bits['empirical']:.3f} | {of_colors['uniform']:.3f}, {of_colors['empirical']:.3f} "
            f"| {100 * row['probe_test_accuracy']:.1f} % | {row['optimizer_steps']:,} "
            f"| {row['training_flops'] / 1e12:.2f} |"
        )
    return "\n".join(lines)


def save_sweep_plot(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Draws every figure over the number of colours, as a PNG file."""
    from matplotlib.figure import Figure

    from hf_igpt.storage import atomic_path

    colors = [row["num_colors"] for row in rows]
    figure = Figure(figsize=(9, 6), layout="constrained")
    quality, bits, nats, probe = figure.subplots(2, 2).ravel()
    quality.plot(colors, [row["psnr_db"] for row in rows], "o-")
    quality.set_ylabel("PSNR of the palette, dB")
    for density, style in (("uniform", "o-"), ("empirical", "s-")):
        bits.plot(colors, [row["bits_per_dim"][density] for row in rows], style, label=f"colours {density}")
    bits.plot(colors, [row["nats_per_token"] / (3 * math.log(2)) for row in rows], ":", label="tokens alone")
    bits.set_ylabel("bits/dim of the RGB image")
    bits.legend()
    nats.plot(colors, [row["nats_per_token"] for row in rows], "o-", label="model")
    nats.plot(colors, [row["unigram_nats_per_token"] for row in rows], ":", label="frequencies alone")
    nats.set_ylabel("nats/token")
    nats.legend()
    probe.plot(colors, [100 * row["probe_test_accuracy"] for row in rows], "o-")
    probe.set_ylabel("linear probe of the best layer, %")
    for axes in (quality, bits, nats, probe):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("colours of the palette")
        axes.grid(alpha=0.3)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
