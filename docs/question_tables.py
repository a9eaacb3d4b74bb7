"""Tables and figures of the pages that answer questions, each from results JSONs."""

import re

from table_parts import RESULTS, ROOT

from hf_igpt.results import read_results


def model_sizes_table() -> str:
    """The paper's sizes beside GPT-2's."""
    sizes = read_results(RESULTS / "model-sizes.json")["metrics"]["sizes"]
    rows = ["| model | layers | width | heads x each | values | positions | published | counted | in the blocks "]
    rows[0] += "| in the vocabulary | biases | TFLOP for 1,024 tokens |"
    rows.append("|---" * 12 + "|")
    for row in sorted(sizes, key=lambda row: row["parameters"]):
        parts = row["parameters_by_part"]
        cells = (
            row["name"],
            str(row["layers"]),
            f"{row['width']:,}",
            f"{row['heads']} x {row['width'] // row['heads']}",
            f"{row['values']:,}",
            f"{row['positions']:,}",
            f"{row['published_parameters'] / 1e6:,.0f}M",
            f"**{row['parameters'] / 1e6:,.1f}M**",
            f"{parts['blocks'] / 1e6:,.1f}M",
            f"{100 * parts['vocabulary'] / row['parameters']:.2g} %",
            f"{row['biases'] / 1e6:.2f}M" if row["biases"] else "none",
            f"{row['training_flops_per_sequence'] / 1e12:.2f}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    note = (
        "Published: Chen et al. (2020) at 32x32, Radford et al. (2019, table 2; its authors said later that it was "
        "wrong). Counted: of the models that this package and transformers make, without weights; what is shared "
        "counts once. Heads of iGPT-XL were never published, those here are a choice; the paper ran it at 64x64, with "
        "more positions. FLOP forward and backward, of matrix products and attention. "
        "[model_sizes.py](benchmarks/model_sizes.py), [JSON](docs/results/model-sizes.json)."
    )
    return "\n".join([*rows, "", note])


def size_in_blocks(larger: str, smaller: str) -> str:
    """How many times the parameters in the blocks of one model are those of another."""
    sizes = {row["name"]: row for row in read_results(RESULTS / "model-sizes.json")["metrics"]["sizes"]}
    first, second = (sizes[name]["parameters_by_part"]["blocks"] for name in (larger, smaller))
    return f"{first / second:.2f}"


def times_larger(larger: str, run: str) -> str:
    """How many times the parameters of a size of the paper are those of a run of this repository."""
    sizes = {row["name"]: row for row in read_results(RESULTS / "model-sizes.json")["metrics"]["sizes"]}
    ratio = sizes[larger]["parameters"] / read_results(RESULTS / f"{run}.json")["metrics"]["parameters"]
    return f"{ratio:,.0f}"


def runs_table() -> str:
    """What the scripts in `runs` do, from their first comments, without what they say of starting them."""
    rows = ["| script | what it does |", "|---|---|"]
    for path in sorted((ROOT / "runs").glob("*.sh")):
        comment = re.match(r"#!.*\n((?:#.*\n)+)", path.read_text())[1]
        words = " ".join(line.removeprefix("#").strip() for line in comment.splitlines())
        rows.append(f"| [{path.name}](runs/{path.name}) | {re.split(' Run again| OUTPUT chooses', words)[0]} |")
    return "\n".join(rows)
