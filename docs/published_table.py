"""Published figures beside ours, from `published.json` and the results of runs; what wasn't run says so."""

import json
from collections.abc import Callable
from typing import Any

from table_parts import RESULTS, ROOT, best_accuracy

from hf_igpt.results import read_results


# What may be asked of the metrics of a run.
FIGURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "nats_per_token": lambda metrics: metrics["nats_per_token"],
    "bits_per_dim": lambda metrics: metrics["bits_per_dim"],
    "linear probe": best_accuracy,
    "4 labels of every class": lambda metrics: next(
        row["accuracy_mean"] for row in metrics["low_data"] if row["per_class"] == 4
    ),
    "fine-tuning": lambda metrics: metrics["test"]["accuracy"],
}


def published_table() -> str:
    """One row a measure: others, ours or the command that would make it, and the nearest that was run."""
    rows = ["| measure | published | ours | nearest that was run |", "|---|---|---|---|"]
    for row in json.loads((ROOT / "docs" / "published.json").read_text()):
        others = "; ".join(f"[{other['who']}]({other['source']}) {other['value']}" for other in row["published"])
        made = [run for run in row["runs"] if (RESULTS / f"{run}-{row['file']}.json").is_file()]
        ours = "; ".join(figure(row, run) for run in made)
        near = f"{figure(row, row['nearest']['run'])}, {row['nearest']['what']}" if "nearest" in row else ""
        ours = ours or "not run: " + ", then ".join(f"`{command}`" for command in row["commands"])
        rows.append(f"| {row['measure']}, {row['unit']} | {others} | {ours} | {near} |")
    return "\n".join(rows)


def figure(row: dict[str, Any], run: str) -> str:
    """What a run reached, with its JSON."""
    name = f"{run}-{row['file']}"
    value = FIGURES[row["figure"]](read_results(RESULTS / f"{name}.json")["metrics"])
    text = f"{100 * value:.1f}" if row["unit"] == "%" else f"{value:.3f}"
    return f"`{run}` [{text}](docs/results/{name}.json)"
