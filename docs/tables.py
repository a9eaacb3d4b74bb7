"""Renders the README's tables from the JSON files in docs/results.

    python docs/tables.py

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; a test checks that the README holds what this renders.
"""

import re
from pathlib import Path
from typing import Any

from hf_igpt.results import read_results
from hf_igpt.training.throughput import training_seconds


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
RUNS = ("digits", "digits-masked", "cifar10-cpu", "cifar10-masked-cpu")
PROBES = (
    "digits-probe",
    "digits-probe-concatenated",
    "digits-probe-attentive",
    "cifar10-cpu-probe",
    "cifar10-masked-cpu-probe",
)
FINETUNED = ("digits-finetune", "digits-scratch", "cifar10-cpu-finetune", "cifar10-cpu-scratch")


def results_table() -> str:
    """Likelihoods of the runs that were made."""
    rows = [
        "| run | parameters | nats/token on test | bits/pixel | unigram | uniform | training time | JSON |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in RUNS:
        run, test = read_results(RESULTS / f"{name}.json"), read_results(RESULTS / f"{name}-test.json")
        scores, hardware = test["metrics"], run["hardware"]
        # A masked model has an upper bound on what a next-pixel model has exactly.
        kind, sign = ("bound_", "≤ ") if "bound_nats_per_token" in scores else ("", "")
        nats, error = scores[f"{kind}nats_per_token"], scores[f"{kind}nats_per_token_standard_error"]
        seconds = training_seconds(run["log_history"], run["arguments"]["total_batch_size"])
        rows.append(
            f"| `{name}`, seed {run['seeds']['seed']} | {run['metrics']['parameters'] / 1e6:.2f}M "
            f"| **{sign}{nats:.3f}** ± {error:.3f} "
            f"| {sign}{scores[f'{kind}bits_per_pixel']:.2f} | {scores['unigram_nats_per_token']:.3f} "
            f"| {scores['uniform_nats_per_token']:.3f} "
            f"| {seconds / 60:.1f} min on {hardware['cores']} cores of {hardware['cpu']} "
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
    palette = read_results(RESULTS / "cifar10-palette.json")
    fitted, pixels = palette["metrics"], palette["metrics"]["num_pixels"] / 1e6
    machine, peaks = step["hardware"], step["metrics"]["machine"]
    note = (
        f"Medians of paired runs in one process on {machine['cores']} cores of {machine['cpu']} "
        f"(fp32 products {peaks['matmul_gflops']:.0f} GFLOP/s). Outputs are compared before anything is timed. "
        f"The processor needs {quantization['metrics']['peak_megabytes_ours']:.0f} MB with everything built. "
        f"`fit_palette` takes {palette['wall_seconds']:.0f} seconds for the {pixels:.1f} million pixels of CIFAR-10, "
        f"{fitted['num_colors']} colours, {fitted['psnr_db']:.1f} dB ([JSON](docs/results/cifar10-palette.json))."
    )
    return "\n".join([*rows, "", note])


def decoding_table() -> str:
    """Samples of the masked digits model against the number of passes."""
    results = read_results(RESULTS / "digits-decoding-steps.json")
    rows = [
        "| images | Fréchet distance | nats/token under the next-pixel model | ms an image |",
        "|---|---|---|---|",
    ]
    for name, row in results["metrics"]["rows"].items():
        seconds = row["seconds_per_image"]
        time = "" if seconds is None else f"{1000 * seconds:.1f}"
        rows.append(f"| {name} | {row['frechet_distance']:.3f} | {row['judge_nats_per_token']:.3f} | {time} |")
    note = (
        f"Over {results['arguments']['images']} drawn images. The Fréchet distance compares their pixels with those "
        "of held-out images, lower is better. The best nats/token are those of the held-out images: more is noise, "
        "less is sameness. [decoding_steps.py](benchmarks/decoding_steps.py), "
        "[JSON](docs/results/digits-decoding-steps.json)."
    )
    return "\n".join([*rows, "", note])


def probes_table() -> str:
    """What probes read from the runs' features, and fine-tuning beside training from scratch."""
    rows = ["| probe | best layer | accuracy on test | pixels alone | JSON |", "|---|---|---|---|---|"]
    few = ["| probe, few labels | 4 of every class | 25 | 400 |", "|---|---|---|---|"]
    for name in PROBES:
        results = read_results(RESULTS / f"{name}.json")
        metrics, probe = results["metrics"], results["probe"]
        best, pixels, layers = metrics["best"], metrics["pixels"], len(metrics["layers"]) - 1
        accuracy = best.get("ensemble_test_accuracy", best["test_accuracy"])
        what = f"{probe['concatenate']} layers, " if probe["concatenate"] > 1 else ""
        what += {"lbfgs": "logistic regression", "attentive": "learned pooling"}[probe["solver"]]
        what += f", {best['ensemble_masks']} masks" if "ensemble_masks" in best else ""
        rows.append(
            f"| `{results['checkpoint']['name'].split('/')[1]}`: {what} | {best['layer']} of {layers} "
            f"| **{_percent(accuracy)}** | {_percent(pixels['test_accuracy']) if pixels else ''} "
            f"| [JSON](docs/results/{name}.json) |"
        )
        if metrics["low_data"]:
            found = {row["per_class"]: row for row in metrics["low_data"]}
            cells = [
                f"{_percent(found[count]['accuracy_mean'])} ± {100 * found[count]['accuracy_std']:.1f}"
                if count in found
                else ""
                for count in (4, 25, 400)
            ]
            few.append(f"| `{name}` | {' | '.join(cells)} |")
    tuned = [
        "| fine-tuning | training images | epochs | accuracy on test | JSON |",
        "|---|---|---|---|---|",
    ]
    for name in FINETUNED:
        results = read_results(RESULTS / f"{name}.json")
        images = results["dataset"]["num_images"]["train"]
        start = "fresh weights" if results["from_scratch"] else "pretrained"
        tuned.append(
            f"| `{name}`, {start} | {images:,} | {results['metrics']['images_seen'] / images:.0f} "
            f"| **{_percent(results['metrics']['test']['accuracy'])}** | [JSON](docs/results/{name}.json) |"
        )
    note = (
        "Layers count from 0, the normed embeddings; layer, penalty, rate and step are chosen on validation. Pixels "
        "alone: the same logistic regression on the palette's colours at every position. ± is the standard deviation "
        "over 5 subsets."
    )
    return "\n".join([*rows, "", *few, "", *tuned, "", note])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times faster" if ratio < 10 else f"{ratio:,.0f} times faster"


def _row(work: str, figure: str, results: dict[str, Any]) -> str:
    script = re.search(r"benchmarks/(\w+)\.py", results["command"])[1]
    json_name = f"benchmark-{script.replace('_', '-')}.json"
    return f"| {work} | {figure} | [{script}.py](benchmarks/{script}.py), [JSON](docs/results/{json_name}) |"


def render(text: str) -> str:
    """The README with its tables filled in."""
    tables = {
        "results": results_table(),
        "decoding-steps": decoding_table(),
        "probes": probes_table(),
        "benchmarks": benchmarks_table(),
    }
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
        if count != 1:
            raise ValueError(f"README.md must have one table marked {name!r}, got {count}.")
    return text


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(render(path.read_text()))
    print(f"{path.name} rendered")
