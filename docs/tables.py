"""Renders the README's tables from the JSON files in docs/results.

    python docs/tables.py

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; a test checks that the README holds what this renders.
"""

import re
from pathlib import Path
from typing import Any

from hf_igpt.results import read_results


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


def results_table() -> str:
    """Likelihoods of the runs that were made."""
    rows = [
        "| run | parameters | nats/token on test | bits/pixel | unigram | uniform | training time | JSON |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ("digits", "cifar10-cpu"):
        run, test = read_results(RESULTS / f"{name}.json"), read_results(RESULTS / f"{name}-test.json")
        scores = test["metrics"]
        rows.append(
            f"| `{name}`, seed {run['seeds']['seed']} | {run['metrics']['parameters'] / 1e6:.2f}M "
            f"| **{scores['nats_per_token']:.3f}** ± {scores['nats_per_token_standard_error']:.3f} "
            f"| {scores['bits_per_pixel']:.2f} | {scores['unigram_nats_per_token']:.3f} "
            f"| {scores['uniform_nats_per_token']:.3f} "
            f"| {run['wall_seconds'] / 60:.1f} min on {run['hardware']['cores']} cores of {run['hardware']['cpu']} "
            f"| [run](docs/results/{name}.json), [test](docs/results/{name}-test.json) |"
        )
    note = (
        "Nats per token are comparable only for the same palette and size. ± is the standard error over test images. "
        "The commands are in the JSON files; bits/pixel are bits of the tokens, not bits/dim of the RGB image."
    )
    return "\n".join([*rows, "", note])


def benchmarks_table() -> str:
    """Ratios against transformers' ImageGPT, each from one run of a script."""
    step, sampling, quantization = (
        read_results(RESULTS / f"benchmark-{name}.json") for name in ("training-step", "sampling", "quantization")
    )
    rows = ["| work | against transformers' ImageGPT | script, JSON |", "|---|---|---|"]
    memory = step["metrics"]["peak_megabytes"]
    faster = step["metrics"]["times_faster"]
    rows.append(_row("training step, 6 layers x 512 wide, 1024 tokens, batch 2, fp32", _times(faster["ours"]), step))
    if "ours_compiled" in faster:
        rows.append(_row("the same, ours compiled", _times(faster["ours_compiled"]), step))
    rows.append(_row("its peak memory above the model", f"{memory['ours'] / memory['native']:.2f} times", step))
    rates = quantization["metrics"]["images_per_second"]
    for state in ("cold", "warm"):
        for kind, name in (("native_best_batch", "its best batch"), ("native_single_call", "one call")):
            if kind in rates:
                ratio = rates[f"ours_{state}"] / rates[kind]
                rows.append(
                    _row(f"1,000 images 32x32 to tokens, {state}, against {name}", _times(ratio), quantization)
                )
    rows.append(
        _row("sampling 16 images of 1024 tokens, 8 x 256", _times(sampling["metrics"]["times_faster"]), sampling)
    )
    machine, peaks = step["hardware"], step["metrics"]["machine"]
    note = (
        f"Medians of paired runs in one process on {machine['cores']} cores of {machine['cpu']} "
        f"(fp32 products {peaks['matmul_gflops']:.0f} GFLOP/s). Outputs are compared before anything is timed. "
        f"The processor needs {quantization['metrics']['peak_megabytes_ours']:.0f} MB with everything built."
    )
    return "\n".join([*rows, "", note])


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times faster" if ratio < 10 else f"{ratio:,.0f} times faster"


def _row(work: str, figure: str, results: dict[str, Any]) -> str:
    script = re.search(r"benchmarks/(\w+)\.py", results["command"])[1]
    json_name = f"benchmark-{script.replace('_', '-')}.json"
    return f"| {work} | {figure} | [{script}.py](benchmarks/{script}.py), [JSON](docs/results/{json_name}) |"


def render(text: str) -> str:
    """The README with its tables filled in."""
    for name, table in (("results", results_table()), ("benchmarks", benchmarks_table())):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
        if count != 1:
            raise ValueError(f"README.md must have one table marked {name!r}, got {count}.")
    return text


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(render(path.read_text()))
    print(f"{path.name} rendered")
