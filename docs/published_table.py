"""Published figures beside ours, from `published.json` and the results of runs; what wasn't run says so."""

import json
from typing import Any

from table_parts import RESULTS, ROOT

from hf_igpt.results import read_results


def published_table() -> str:
    """One row a measure: others, ours or the command that would make it, and the nearest that was run."""
    rows = ["| measure | published | ours | nearest that was run |", "|---|---|---|---|"]
    for row in json.loads((ROOT / "docs" / "published.json").read_text()):
        others = "; ".join(f"[{other['who']}]({other['source']}) {other['value']}" for other in row["published"])
        ours = "; ".join(filter(None, (found(row, run) for run in row["runs"])))
        nearest = row.get("nearest")
        near = f"{found(row, nearest['run'])}, {nearest['what']}" if nearest else ""
        rows.append(f"| {row['measure']}, {row['unit']} | {others} | {ours or not_run(row)} | {near} |")
    return "\n".join(rows)


def found(row: dict[str, Any], run: str) -> str | None:
    """What a run reached, with its JSON; None where there is none."""
    name = f"{run}-{row['file']}"
    if not (RESULTS / f"{name}.json").is_file():
        return None
    value: Any = read_results(RESULTS / f"{name}.json")
    for key in row["value"]:
        value = value[key]
    text = f"{100 * value:.1f}" if row["unit"] == "%" else f"{value:.3f}"
    return f"`{run}` [{text}](docs/results/{name}.json)"


def not_run(row: dict[str, Any]) -> str:
    return f"not run: `{row['command']}`"
