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
        made = [run for run in row["runs"] if (RESULTS / f"{run}-{row['file']}.json").is_file()]
        ours = "; ".join(figure(row, run) for run in made)
        near = f"{figure(row, row['nearest']['run'])}, {row['nearest']['what']}" if "nearest" in row else ""
        ours = ours or f"not run: `{row['command']}`"
        rows.append(f"| {row['measure']}, {row['unit']} | {others} | {ours} | {near} |")
    return "\n".join(rows)


def figure(row: dict[str, Any], run: str) -> str:
    """What a run reached, with its JSON."""
    name = f"{run}-{row['file']}"
    value: Any = read_results(RESULTS / f"{name}.json")
    for key in row["value"]:
        value = value[key]
    text = f"{100 * value:.1f}" if row["unit"] == "%" else f"{value:.3f}"
    return f"`{run}` [{text}](docs/results/{name}.json)"
