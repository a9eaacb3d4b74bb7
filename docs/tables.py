"""Renders tables and figures of the README and of the pages in docs from docs/results and from the commands' options.

    python docs/tables.py

What is rendered stands between `<!-- NAME -->` and `<!-- /NAME -->`; a test checks that the pages hold what this
renders.
"""

import dataclasses
import importlib
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmark_tables import (
    benchmarks_table,
    chaos_table,
    cost_model_table,
    decoding_table,
    demo_load_table,
    faults_table,
    loading_table,
    parallel_table,
    roofline_table,
    scaling_table,
    windows_time_table,
)
from option_tables import speedrun_ratio, speedrun_table, trials_table
from published_table import published_table
from question_tables import (
    best_layer,
    compared_runs_table,
    model_sizes_table,
    resolution_table,
    runs_table,
    size_in_blocks,
    times_larger,
)
from table_parts import RESULTS, ROOT, best_accuracy, percent
from token_tables import bits_per_dim_table, palette_sweep_table, progressive_table, three_kinds_table, vqvae_table

from hf_igpt.arguments import SHIPPED_RECIPES, shipped_recipes
from hf_igpt.commands.main import COMMANDS, CONFIGURATIONS, SHARED_BY_PROCESSES
from hf_igpt.configuration_igpt import ImageGPTConfig
from hf_igpt.evaluation.features import layer_window
from hf_igpt.measured import SOLVERS
from hf_igpt.results import read_results
from hf_igpt.training.attention_windows import attention_fields
from hf_igpt.training.cost import parameters, training_flops
from hf_igpt.training.plan_text import plans_table
from hf_igpt.training.throughput import training_seconds


README = ROOT / "README.md"
RECIPE_HEADER = ("Paper row", "Command", "Cost", "Expected")
RUNS = ("digits", "digits-masked", "cifar10-cpu", "cifar10-best-cpu", "cifar10-masked-cpu")
PROBES = (
    "digits-probe",
    "digits-probe-concatenated",
    "digits-probe-attentive",
    "cifar10-cpu-probe",
    "cifar10-best-cpu-probe",
    "cifar10-best-cpu-knn",
    "cifar10-masked-cpu-probe",
)
# Commands that take the options of pretrain beside their own.
TAKING_PRETRAINS = ("plan", "palette_sweep")
FINETUNED = (
    "digits-finetune",
    "digits-scratch",
    "cifar10-cpu-finetune",
    "cifar10-best-cpu-finetune",
    "cifar10-cpu-scratch",
)


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


def probes_table() -> str:
    """What probes read from the runs' features, and fine-tuning beside training from scratch."""
    rows = ["| probe | best layer | accuracy on test | pixels alone | JSON |", "|---|---|---|---|---|"]
    few = ["| probe, few labels | 4 of every class | 25 | 400 |", "|---|---|---|---|"]
    for name in PROBES:
        results = read_results(RESULTS / f"{name}.json")
        metrics, probe = results["metrics"], results["probe"]
        best, pixels, layers = metrics["best"], metrics["pixels"], len(metrics["layers"]) - 1
        what = f"{probe['concatenate']} layers, " if probe["concatenate"] > 1 else ""
        what += SOLVERS[probe["solver"]]
        what += f", {best['ensemble_masks']} masks" if "ensemble_masks" in best else ""
        window = layer_window(layers + 1, probe["concatenate"], best["layer"])
        read = f"{window[0]} to {window[-1]}" if len(window) > 1 else f"{window[0]}"
        rows.append(
            f"| `{results['checkpoint']['name'].split('/')[1]}`: {what} | {read} of {layers} "
            f"| **{percent(best_accuracy(metrics))}** | {percent(pixels['test_accuracy']) if pixels else ''} "
            f"| [JSON](docs/results/{name}.json) |"
        )
        if metrics["low_data"]:
            found = {row["per_class"]: row for row in metrics["low_data"]}
            cells = [
                f"{percent(found[count]['accuracy_mean'])} ± {100 * found[count]['accuracy_std']:.1f}"
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
            f"| **{percent(results['metrics']['test']['accuracy'])}** | [JSON](docs/results/{name}.json) |"
        )
    note = (
        "Layers count from 0, the normed embeddings; layer, penalty, rate and step are chosen on validation. Pixels "
        "alone: the same logistic regression on the palette's colours at every position. ± is the standard deviation "
        "over 5 subsets."
    )
    return "\n".join([*rows, "", *few, "", *tuned, "", note])


def plans_text() -> str:
    """What the shipped recipes cost on a CPU, on one GPU and on eight."""
    parts = []
    for name in ("plan-cpu", "plan-one-gpu", "plan-eight-gpus"):
        results = read_results(RESULTS / f"{name}.json")
        parts.append(plans_table(results["metrics"]["plans"]))
        parts.append(f"`{results['command']}` ([JSON](docs/results/{name}.json))")
    measured = read_results(RESULTS / "plan-cpu.json")["arguments"]["measured_flops"]
    hardware = read_results(ROOT / measured)["hardware"]
    parts.append(
        f"GB are what the recipe as it is takes on one device. The CPU's rate is that of {hardware['cores']} cores of "
        f"{hardware['cpu']} ([JSON]({measured})). A device that fits fewer images at once accumulates the rest of a "
        "step."
    )
    return "\n\n".join(parts)


def demo_max_waiting() -> str:
    """How many requests may wait in the demo."""
    return str(arguments_class("demo")().max_waiting)


def probe_accuracy(name: str, what: str) -> str:
    """Test accuracy of a run's best layer ("best"), or of its pixels ("pixels")."""
    return percent(read_results(RESULTS / f"{name}-probe.json")["metrics"][what]["test_accuracy"])


def training_minutes(name: str) -> str:
    """How long a run trained."""
    run = read_results(RESULTS / f"{name}.json")
    return f"{training_seconds(run['log_history'], run['arguments']['total_batch_size']) / 60:.1f} minutes"


def test_nats(name: str) -> str:
    """Nats per token of a run's test images."""
    return f"{read_results(RESULTS / f'{name}-test.json')['metrics']['nats_per_token']:.3f}"


def palette_psnr() -> str:
    """Of the palette of CIFAR-10."""
    return f"{read_results(RESULTS / 'cifar10-palette.json')['metrics']['psnr_db']:.1f} dB"


def arguments_class(command: str) -> type:
    """The dataclass of a command's options."""
    module = importlib.import_module(f"hf_igpt.commands.{command}")
    elsewhere = {command: f"{command.capitalize()}Arguments" for command in ("plan", "pretrain", "finetune")}
    elsewhere["train_vqvae"] = "TrainVQVAEArguments"
    if command in elsewhere:
        return getattr(module, elsewhere[command])
    own = [kind for kind in vars(module).values() if getattr(kind, "__module__", None) == module.__name__]
    (found,) = [kind for kind in own if dataclasses.is_dataclass(kind)]
    return found


def options_table(command: str) -> str:
    """Every option of a command; of one that takes pretrain's too, those that it has of its own."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    fields = {field.name: field for field in dataclasses.fields(arguments_class(command))}
    names = arguments_class(command).__annotations__ if command in TAKING_PRETRAINS else fields
    for field in (fields[name] for name in names):
        is_made = field.default is dataclasses.MISSING
        default = _shown(field.default_factory() if is_made else field.default)
        choices = ", ".join(f"`{choice}`" for choice in field.metadata["choices"] or ())
        meaning = f"{field.metadata['help']}: {choices}" if choices else field.metadata["help"]
        rows.append(f"| `--{field.name}` | {default} | {meaning} |")
    return "\n".join(rows)


def commands_text() -> str:
    """Every command, and every option of it."""
    parts = []
    for command, (what, is_launched) in COMMANDS.items():
        if command != "env":
            where = " It runs on several devices." if is_launched else ""
            where += " It takes every option of pretrain too." if command in TAKING_PRETRAINS else ""
            where += " Several processes share the work." if command in SHARED_BY_PROCESSES else ""
            parts.append(f"## {command}\n\n`hf-igpt {command}`: {what}.{where}\n\n{options_table(command)}")
    return "\n\n".join(parts)


def _shown(default: Any) -> str:
    if default is None or default == []:
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"`{' '.join(map(str, default)) if isinstance(default, list) else default}`"


def recipe_header(name: str) -> dict[str, str]:
    """The comment lines in front of a shipped recipe, by their first words: "Paper row", "Command" and so on."""
    lines = []
    for line in (SHIPPED_RECIPES / f"{name}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    before, *parts = re.split(rf"(?:^|\s)({'|'.join(RECIPE_HEADER)}): ", " ".join(lines))
    if before:
        raise ValueError(f"Recipe {name} must begin with {RECIPE_HEADER[0]!r}, got {before!r}.")
    return dict(zip(parts[::2], parts[1::2], strict=True))


def recipes_table() -> str:
    """The rows of the paper and of others that the recipes are, and what was found."""
    rows = ["| recipe | row | cost | found |", "|---|---|---|---|"]
    for name in shipped_recipes():
        header = recipe_header(name)
        cells = (header[key].rstrip(".") for key in ("Paper row", "Cost", "Expected"))
        rows.append(f"| [{name}](recipes/{name}.yaml) | {' | '.join(cells)} |")
    return "\n".join(rows)


def attention_cost_table() -> str:
    """Parameters and FLOPs of the paper's smallest model at two sizes, with full attention and with windows."""
    rows = [
        "| iGPT-S | parameters | GFLOP an image | MFLOP a pixel | against 32x32, full |",
        "|---|---|---|---|---|",
    ]
    whole = ImageGPTConfig.from_preset("igpt-s")
    for side in (32, 64):
        for what, window, every in (
            ("full attention", None, 0),
            ("4 rows, every third block full", 4, 3),
            ("4 rows in every block", 4, 0),
        ):
            windows = attention_fields(window, every, whole.num_hidden_layers, (side, side))
            config = ImageGPTConfig.from_preset("igpt-s", image_size=side, **windows)
            flops = training_flops(config)
            per_pixel = flops / config.n_positions
            ratio = per_pixel / (training_flops(whole) / whole.n_positions)
            rows.append(
                f"| {side}x{side}, {what} | {parameters(config) / 1e6:.1f}M | {flops / 1e9:,.0f} "
                f"| {per_pixel / 1e6:.0f} | {ratio:.2f} times |"
            )
    return "\n".join([*rows, "", "FLOP forward and backward, computed from the config; windows change no parameter."])


def configurations_table() -> str:
    """What accelerate's configurations are for, from their headers."""
    rows = ["| `--config_file` | for | run |", "|---|---|---|"]
    for path in sorted(CONFIGURATIONS.glob("*.yaml")):
        purpose, run = (
            re.search(rf"^# {key}: (.*?)\.?$", path.read_text(), re.MULTILINE)[1] for key in ("For", "Run")
        )
        rows.append(f"| [{path.stem}](recipes/accelerate/{path.name}) | {purpose} | {run} |")
    return "\n".join(rows)


# What the README must have, and all that may stand between markers.
README_TABLES: dict[str, Callable[[], str]] = {
    "results": results_table,
    "decoding-steps": decoding_table,
    "probes": probes_table,
    "benchmarks": benchmarks_table,
    "published": published_table,
}
MARKED: dict[str, Callable[[], str]] = {
    **README_TABLES,
    "scaling-tokens": partial(scaling_table, "tokens"),
    "scaling-batch": partial(scaling_table, "batch"),
    "scaling-size": partial(scaling_table, "size"),
    "roofline": roofline_table,
    "data-loading": loading_table,
    "recipes": recipes_table,
    "faults": faults_table,
    "chaos": chaos_table,
    "demo-load": demo_load_table,
    "demo-max-waiting": demo_max_waiting,
    "plans": plans_text,
    "attention-cost": attention_cost_table,
    "windows-time": windows_time_table,
    "hybrid-attention": partial(compared_runs_table, "hybrid-attention", "attention"),
    "runs": runs_table,
    "option-runs": partial(compared_runs_table, "options", "options"),
    "option-trials": trials_table,
    "speedrun": speedrun_table,
    "speedrun-ratio": speedrun_ratio,
    "resolution": resolution_table,
    "codes-probe": partial(best_layer, "three-kinds-vqvae-probe"),
    "colors-probe": partial(best_layer, "three-kinds-palette-probe"),
    "model-sizes": model_sizes_table,
    "igpt-l-blocks": partial(size_in_blocks, "iGPT-L", "GPT-2 XL"),
    "igpt-xl-blocks": partial(size_in_blocks, "iGPT-XL", "GPT-2 XL"),
    "igpt-l-to-cifar10-cpu": partial(times_larger, "iGPT-L", "cifar10-cpu"),
    "cost-model": cost_model_table,
    "parallel-sampling": parallel_table,
    "configurations": configurations_table,
    "bits-per-dim": bits_per_dim_table,
    "palette-sweep": palette_sweep_table,
    "three-kinds": three_kinds_table,
    "progressive": progressive_table,
    "digits-best-layer": partial(probe_accuracy, "digits", "best"),
    "digits-pixels": partial(probe_accuracy, "digits", "pixels"),
    "cifar10-cpu-best-layer": partial(probe_accuracy, "cifar10-cpu", "best"),
    "cifar10-cpu-pixels": partial(probe_accuracy, "cifar10-cpu", "pixels"),
    "digits-minutes": partial(training_minutes, "digits"),
    "digits-nats": partial(test_nats, "digits"),
    "cifar10-cpu-minutes": partial(training_minutes, "cifar10-cpu"),
    "vqvaes": vqvae_table,
    "cifar10-palette-psnr": palette_psnr,
    "commands": commands_text,
}
MARKER = re.compile(r"<!-- (?P<name>[a-z][\w-]*) -->(?P<newline>\n?).*?<!-- /(?P=name) -->", re.DOTALL)


def pages() -> list[Path]:
    """The README, and every page of the documentation."""
    return [README, *sorted((ROOT / "docs").rglob("*.md"))]


def render(text: str, page: Path = README) -> str:
    """
    A page with everything that is marked filled in, links as seen from the page's folder.

    Raises:
        ValueError: the README lacks a table or has it twice.
    """
    names = [match["name"] for match in MARKER.finditer(text)]
    if page == README:
        for name in README_TABLES:
            if names.count(name) != 1:
                raise ValueError(f"README.md must have one table marked {name!r}, got {names.count(name)}.")

    def fill(match: re.Match) -> str:
        name, newline = match["name"], match["newline"]
        content = re.sub(r"\]\(([\w./-]+)\)", link, MARKED[name]()) if name in MARKED else None
        return match[0] if content is None else f"<!-- {name} -->{newline}{content}{newline}<!-- /{name} -->"

    def link(match: re.Match) -> str:
        return f"]({os.path.relpath(ROOT / match[1], page.parent)})"

    return MARKER.sub(fill, text)


if __name__ == "__main__":
    for path in pages():
        path.write_text(render(path.read_text(), path))
        print(f"{path.relative_to(ROOT)} rendered")
