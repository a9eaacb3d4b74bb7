"""Plans in words: a table for one recipe, and one for many."""

from collections.abc import Sequence
from typing import Any


_UNITS = (("years", 365.25 * 86_400), ("days", 86_400), ("hours", 3_600), ("min", 60), ("s", 1))
_PARTS = {
    "weights": "weights, float32",
    "optimizer": "Adam's two means",
    "gradients": "gradients",
    "copies": "half-precision copies of the weights",
    "exchange": "buffers of the exchange between devices",
    "activations": "activations",
    "loss": "logits and loss",
    "working": "the block at work",
    "peak": "peak",
}


def plan_text(plan: dict[str, Any]) -> str:
    """Everything about one recipe: its cost, and a column for each kind of device."""
    model, flops, run = plan["model"], plan["flops"], plan["run"]
    lines = [
        f"{plan['recipe']}: {model['parameters'] / 1e6:,.2f}M parameters, {model['num_hidden_layers']} layers x "
        f"{model['hidden_size']}, {model['tokens']:,} tokens an image, {plan['objective']}",
        f"{flops['forward_per_image'] / 1e9:,.2f} GFLOP an image forward, "
        f"{flops['training_per_image'] / 1e9:,.2f} forward and backward, {flops['run']:.3g} FLOP for the "
        f"{run['images']:,} images of the run ({run['optimizer_steps']:,} steps of {run['total_batch_size']})",
        *plan["notes"],
        "",
        *_markdown(["GB of one device", *(_heading(row) for row in plan["devices"])], _rows(plan["devices"])),
        "",
        "The peak is less than the sum: gradients and activations are not all there at once. No evaluation, samples,",
        "checkpoints or exchange between devices are in the time.",
    ]
    return "\n".join(lines)


def plans_table(plans: Sequence[dict[str, Any]]) -> str:
    """A row for each recipe: its size and cost, and for each kind of device what fits and how long it takes."""
    first = plans[0]["devices"]
    header = ["recipe", "parameters", "GFLOP an image", "FLOP of the run", *(_heading(row) for row in first)]
    rows = []
    for plan in plans:
        rows.append(
            [
                f"`{plan['recipe']}`",
                _millions(plan["model"]["parameters"]),
                _three_digits(plan["flops"]["training_per_image"] / 1e9),
                f"{plan['flops']['run']:.2g}",
                *(f"{_gigabytes(row['memory']['peak'])} GB, {_outcome(row)}" for row in plan["devices"]),
            ]
        )
    return "\n".join(_markdown(header, rows))


def _rows(devices: list[dict[str, Any]]) -> list[list[str]]:
    rows = [
        [what, *(_gigabytes(row["memory"][part]) for row in devices)]
        for part, what in _PARTS.items()
        if any(row["memory"][part] for row in devices)
    ]
    rows.append(["of", *(f"{_gigabytes(row['usable_bytes'])} usable, {row['memory_source']}" for row in devices)])
    rows.append(["as asked", *(_setting(row["setting"]) for row in devices)])
    rows.append(["fits", *(_fit(row) for row in devices)])
    if any(row["cache_bytes_per_image"] for row in devices):
        rows.append(["cache of an image drawn", *(_gigabytes(row["cache_bytes_per_image"]) for row in devices)])
    rows.append(["peak rate", *(_rate(row) for row in devices)])
    rows.append(["reached, predicted", *(f"{100 * row['utilization']:.0f} %" for row in devices)])
    rows.append(["images/s", *(_per_second(row["images_per_second"]) for row in devices)])
    rows.append(["time", *(duration(row["seconds"]) for row in devices)])
    return rows


def duration(seconds: float | None) -> str:
    """Seconds in the largest unit of which there are two; "-" for None."""
    if seconds is None:
        return "-"
    unit, length = next((pair for pair in _UNITS if seconds >= 2 * pair[1]), _UNITS[-1])
    return f"{_three_digits(seconds / length)} {unit}"


def _three_digits(number: float) -> str:
    return f"{number:,.3g}" if number < 999.5 else f"{number:,.0f}"


def _heading(row: dict[str, Any]) -> str:
    return f"{row['count']} x {row['name']}, {row['precision']}"


def _fit(row: dict[str, Any]) -> str:
    if row["fits"]:
        return "yes"
    if row["fitting_setting"] is None:
        return "no, whatever the setting"
    return f"no; with {_setting(row['fitting_setting'])}"


def _outcome(row: dict[str, Any]) -> str:
    if row["fitting_setting"] is None:
        return "does not fit"
    time = duration(row["seconds"])
    return time if row["fits"] else f"with {_setting(row['fitting_setting'])} {time}"


def _setting(setting: dict[str, Any]) -> str:
    words = [f"{setting['per_device_train_batch_size']} at once"]
    words += ["checkpointing"] if setting["gradient_checkpointing"] else []
    words += ["sharded"] if setting["sharding"] == "full" else []
    return " + ".join(words)


def _rate(row: dict[str, Any]) -> str:
    return f"{row['peak_flops'] / 1e12:,.3g} TFLOP/s, {row['peak_source']}"


def _per_second(rate: float | None) -> str:
    return "-" if rate is None else _three_digits(rate)


def _gigabytes(count: int | None) -> str:
    return "" if count is None else _three_digits(count / 1e9)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.3g}M" if count < 1e9 else f"{count / 1e9:,.3g}B"


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    """A table that reads as it stands and as Markdown."""
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (header, *rows)
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
