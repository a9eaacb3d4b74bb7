"""The paper's figures 2, 3 and 4, drawn from the results.json files of probes and fine-tuning alone."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hf_igpt.measured import OBJECTIVES, SHORT_SOLVERS, Measured
from hf_igpt.storage import atomic_path


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What must be the same of the probes of one curve.
_PROTOCOL = ("solver", "pooling", "norm", "concatenate", "standardize", "fitted_on")
_STEP_LABELS = 6
_MAX_BARS = 12


def save_layer_curve(results: dict[str, Any], path: str | os.PathLike) -> None:
    """`save_layers` of one probe."""
    save_layers([Measured(results)], path)


def save_layers(measured: Sequence[Measured], path: str | os.PathLike) -> list[dict[str, Any]]:
    """
    Accuracy of a probe by layer, a curve for each result, the layer that validation chose marked (paper, figure 2).

    Returns:
        What is drawn, accuracies in percent: name, layers, accuracies, best_layer, best_accuracy, and pixels or None.

    Raises:
        ValueError: no results, a field that is missing or wrong, or two curves of one name.
    """
    curves = [_layer_curve(item) for item in _some(measured)]
    _refuse_twins([curve["name"] for curve in curves], measured)
    figure, axes = _canvas(f"Accuracy at every layer{_solvers(measured)}", "layer (0: input of the first block)")
    for curve in curves:
        label = f"{curve['name']} (best: layer {curve['best_layer']}, {curve['best_accuracy']:.1f} %)"
        (line,) = axes.plot(curve["layers"], curve["accuracies"], marker=".", label=label)
        best = (curve["best_layer"], curve["best_accuracy"])
        axes.plot(*best, "*", markersize=15, color=line.get_color(), zorder=3, mec="black")
    _draw_pixels(axes, curves)
    axes.plot([], [], "*", color="white", mec="black", markersize=12, label="best layer, chosen on validation")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _finish(figure, axes, path)
    return curves


def _layer_curve(item: Measured) -> dict[str, Any]:
    rows = item.get("metrics.layers", list)
    points = sorted((item.get("layer", int, row), item.percent("test_accuracy", row)) for row in rows)
    layers, accuracies = [layer for layer, _ in points], [accuracy for _, accuracy in points]
    best = item.get("metrics.best.layer", int)
    if len(set(layers)) < len(layers) or best not in layers:
        raise ValueError(
            f"`metrics.layers` in {item.source} must hold each layer once and the best one, {best}, got {layers}."
        )
    pixels = item.get("metrics.pixels", (dict, type(None)))
    return {
        "name": item.name or item.get("checkpoint.name", str),
        "layers": layers,
        "accuracies": accuracies,
        "best_layer": best,
        "best_accuracy": accuracies[layers.index(best)],
        "pixels": None if pixels is None else item.percent("test_accuracy", pixels),
    }


def _solvers(measured: Sequence[Measured]) -> str:
    """The end of a title; empty where results of several solvers are side by side."""
    solvers = {_solver(item) for item in measured}
    return f": {solvers.pop()}" if len(solvers) == 1 else ""


def _solver(item: Measured) -> str:
    solver = item.get("probe.solver", str)
    return SHORT_SOLVERS.get(solver, solver)


def _draw_pixels(axes: "Axes", curves: list[dict[str, Any]]) -> None:
    """One line for each height: probes of the same images share it."""
    owners: dict[float, list[int]] = {}
    for number, curve in enumerate(curves):
        if curve["pixels"] is not None:
            owners.setdefault(round(curve["pixels"], 6), []).append(number)
    for height, numbers in sorted(owners.items()):
        whose = f" of {', '.join(curves[number]['name'] for number in numbers)}" if len(owners) > 1 else ""
        label = f"the same probe of raw pixels{whose} ({height:.1f} %)"
        color = f"C{numbers[0]}" if len(owners) > 1 and len(numbers) == 1 else "grey"
        axes.axhline(height, color=color, linestyle="--", label=label)


def save_checkpoints(measured: Sequence[Measured], path: str | os.PathLike) -> list[dict[str, Any]]:
    """
    Accuracy at the best layer against validation loss, lower loss to the right, points labelled with optimizer steps
    (paper, figure 3). Results of one name form a curve; without names, those of one run folder.

    Returns:
        What is drawn: name, losses in nats per token, accuracies in percent, steps (None where unknown).

    Raises:
        ValueError: no results, a field that is missing or wrong, or losses of both objectives, which do not compare.
    """
    objectives = {item.objective for item in _some(measured)}
    if len(objectives) > 1:
        raise ValueError(
            "The validation losses of next-pixel and of masked models do not compare. Draw a figure for each."
        )
    curves: dict[str, list[tuple]] = {}
    _refuse_mixtures(measured)
    for item in measured:
        loss = item.get("checkpoint.validation_nats_per_token", (float, int))
        step = item.get("checkpoint.step", (int, type(None)))
        point = (loss, item.percent("metrics.best.test_accuracy"), step)
        curves.setdefault(item.name or _run_name(item), []).append(point)
    token = "masked token" if objectives == {"masked"} else "token"
    title = f"Probe accuracy against validation loss{_solvers(measured)}"
    figure, axes = _canvas(title, f"validation loss (nats per {token})")
    drawn = [_in_order(name, points) for name, points in curves.items()]
    highest = max(drawn, key=lambda curve: max(curve["accuracies"]))
    for curve in drawn:
        (line,) = axes.plot(curve["losses"], curve["accuracies"], marker="o", markersize=5, label=curve["name"])
        _label_steps(axes, curve, line.get_color(), above=curve is highest)
    if any(step is not None for curve in drawn for step in curve["steps"]):
        axes.plot([], [], " ", label="numbers: optimizer steps")
    axes.invert_xaxis()
    axes.margins(x=0.08, y=0.12)
    _finish(figure, axes, path)
    return drawn


def _in_order(name: str, points: list[tuple]) -> dict[str, Any]:
    """In the order of training, also where the loss rises again; without steps, by falling loss."""
    has_steps = all(step is not None for _, _, step in points)
    points = sorted(points, key=lambda point: point[2] if has_steps else -point[0])
    losses, accuracies, steps = (list(column) for column in zip(*points, strict=True))
    return {"name": name, "losses": losses, "accuracies": accuracies, "steps": steps}


def _refuse_mixtures(measured: Sequence[Measured]) -> None:
    """A curve over checkpoints means something where only the checkpoint changes."""
    first: dict[str, Measured] = {}
    for item in measured:
        name = item.name or _run_name(item)
        other = first.setdefault(name, item)
        for field in _PROTOCOL:
            values = [one.get("probe", dict).get(field) for one in (other, item)]
            if values[0] != values[1]:
                raise ValueError(
                    f"`probe.{field}` is {values[0]!r} in {other.source} and {values[1]!r} in {item.source}, which "
                    f"would form one curve, {name!r}. Give each curve a name of its own."
                )


def _run_name(item: Measured) -> str:
    run = item.get("checkpoint.name", str).rstrip("/").rpartition("/")[0] or item.get("checkpoint.name", str)
    return f"{run} ({_short(item.get('checkpoint.parameters', int))} parameters)"


def _label_steps(axes: "Axes", curve: dict[str, Any], color: str, above: bool) -> None:
    """The last, and some before it: labels of all checkpoints of a long run would cover each other."""
    from matplotlib.patheffects import withStroke

    points = list(zip(curve["losses"], curve["accuracies"], curve["steps"], strict=True))
    # Where curves rise to the right, these two sides of a point are free of its own line.
    side = {"xytext": (-4, 4), "ha": "right"} if above else {"xytext": (4, -4), "ha": "left", "va": "top"}
    for loss, accuracy, step in points[:: -1 * -(-len(points) // _STEP_LABELS)]:
        if step is not None:
            halo = [withStroke(linewidth=3, foreground="white")]
            style = {"textcoords": "offset points", "fontsize": 8, "color": color, "path_effects": halo}
            axes.annotate(_short(step), (loss, accuracy), **side, **style)


def save_bars(measured: Sequence[Measured], path: str | os.PathLike) -> list[dict[str, Any]]:
    """
    Probe and fine-tuning accuracy of next-pixel and masked models as bars; those of a majority over several masks
    hatched, beside those of one mask (paper, figure 4).

    Returns:
        What is drawn: kind, series, accuracy in percent, masks (1 without an ensemble).

    Raises:
        ValueError: no results, a field that is missing or wrong, two bars in one place, or too many to read.
    """
    bars = [bar for item in _some(measured) for bar in _bars_of(item)]
    _refuse_twins([f"{bar['kind']}, {bar['series']}" for bar in bars], measured)
    if len(bars) > _MAX_BARS:
        raise ValueError(f"A figure holds at most {_MAX_BARS} bars, got {len(bars)}. Draw several figures.")
    figure, axes = _canvas("Probe and fine-tuning accuracy", "")
    kinds, series = (list(dict.fromkeys(bar[key] for bar in bars)) for key in ("kind", "series"))
    bases = list(dict.fromkeys(bar["base"] for bar in bars))
    left, ticks = 0.0, []
    for kind in kinds:
        group = sorted((bar for bar in bars if bar["kind"] == kind), key=lambda bar: series.index(bar["series"]))
        for offset, bar in enumerate(group):
            is_new = bar["series"] not in axes.get_legend_handles_labels()[1]
            drawn = axes.bar(
                left + offset,
                bar["accuracy"],
                width=0.9,
                color=f"C{bases.index(bar['base'])}",
                alpha=0.85,
                edgecolor="white",
                hatch="///" if bar["masks"] > 1 else None,
                label=bar["series"] if is_new else None,
            )
            axes.bar_label(drawn, fmt="%.1f", padding=2, fontsize=9)
        ticks.append(left + (len(group) - 1) / 2)
        left += len(group) + 1
    axes.set_xticks(ticks, kinds)
    axes.set_xlim(-1, left - 1)
    axes.set_ylim(0, 109)
    axes.set_yticks(range(0, 101, 20))
    _finish(figure, axes, path)
    return [{key: bar[key] for key in ("kind", "series", "accuracy", "masks")} for bar in bars]


def _bars_of(item: Measured) -> list[dict[str, Any]]:
    """One bar, or two of a masked model: with one mask, and the majority of several."""
    base = ", ".join(filter(None, (item.name, OBJECTIVES[item.objective])))
    if "probe" not in item.results:
        kind = "from scratch" if item.results.get("from_scratch") is True else "fine-tuned"
        count, votes = item.get("metrics.test.ensemble_masks", int), {}
        if "single_mask_accuracy" in item.get("metrics.test", dict):
            votes[1] = item.percent("metrics.test.single_mask_accuracy")
        votes[count] = item.percent("metrics.test.accuracy")
    else:
        kind, votes = _solver(item), {1: item.percent("metrics.best.test_accuracy")}
        if "ensemble_masks" in item.get("metrics.best", dict):
            count = item.get("metrics.best.ensemble_masks", int)
            votes[count] = item.percent("metrics.best.ensemble_test_accuracy")
    one = ", one mask" if item.objective == "masked" else ""
    words = {count: f"{base}, majority of {count} masks" if count > 1 else f"{base}{one}" for count in votes}
    return [
        {"kind": kind, "base": base, "series": words[count], "accuracy": accuracy, "masks": count}
        for count, accuracy in votes.items()
    ]


def _some(measured: Sequence[Measured]) -> Sequence[Measured]:
    if not measured:
        raise ValueError("A figure needs at least one results.json, got none.")
    return measured


def _refuse_twins(names: list[str], measured: Sequence[Measured]) -> None:
    twins = [name for name in names if names.count(name) > 1]
    if twins:
        sources = ", ".join(item.source for item in measured)
        raise ValueError(f"Two results would both be called {twins[0]!r} (of {sources}). Give each a name of its own.")


def _short(number: int) -> str:
    """131000 as 131K, as the paper writes steps; small numbers in full."""
    if number < 10_000:
        return str(number)
    unit, size = next((unit, size) for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)) if number >= size)
    return f"{number / size:.3g}{unit}"


def _canvas(title: str, x_label: str) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel("accuracy on test (%)")
    axes.grid(alpha=0.3, axis="y" if not x_label else "both")
    axes.set_axisbelow(True)
    return figure, axes


def _finish(figure: "Figure", axes: "Axes", path: str | os.PathLike) -> None:
    # Below the axes, where no legend can cover a point.
    handles, labels = axes.get_legend_handles_labels()
    figure.set_figheight(4.1 + 0.21 * len(labels))
    figure.legend(handles, labels, loc="outside lower center", fontsize=9)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


FIGURES: dict[str, Callable[[Sequence[Measured], str | os.PathLike], list[dict[str, Any]]]] = {
    "layers": save_layers,
    "checkpoints": save_checkpoints,
    "bars": save_bars,
}
