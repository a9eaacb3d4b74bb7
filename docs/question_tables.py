"""Tables and figures of the pages that answer questions, each from results JSONs."""

import re

from table_parts import RESULTS, ROOT, best_accuracy, likelihood_and_probe, listed, percent, probe_note

from hf_igpt.results import read_results


def compared_runs_table(name: str, what: str) -> str:
    """Likelihood and probes at equal steps of runs that differ in what a script of this name in `runs` compares."""
    results = read_results(RESULTS / f"{name}.json")
    metrics, arguments = results["metrics"], results["arguments"]
    compared = metrics[what]
    rows = [f"| {what} | nats/token on validation | its seeds | probe on test | its seeds | GFLOP an image |"]
    rows.append("|---" * 6 + "|")
    rows += [
        f"| {label} | {likelihood_and_probe(row['runs'])} | {row['training_gflop_per_image']:.3f} |"
        for label, row in compared.items()
    ]
    probe = next(iter(compared.values()))["runs"][0]["probe"]
    side = arguments["image_size"][0]
    note = (
        f"CIFAR-10 at {side}x{side}, {metrics['optimizer_steps']} steps of {arguments['total_batch_size']} images, "
        f"{arguments['num_hidden_layers']} blocks, {arguments['hidden_size']} wide, "
        f"{metrics['parameters'] / 1e6:.2f}M parameters, seeds {listed(results['seeds'].values())}; the colours' "
        f"frequencies alone have {metrics['unigram_nats_per_token']:.3f} nats/token. "
        f"{probe_note(probe['num_images'], probe['test_accuracy'])} "
        f"[{name}.sh](runs/{name}.sh), [JSON](docs/results/{name}.json)."
    )
    return "\n".join([*rows, "", note])


def resolution_table() -> str:
    """Likelihood, probe and cost of one small model on images of several sizes."""
    results = read_results(RESULTS / "resolution.json")
    metrics, arguments = results["metrics"], results["arguments"]
    rows = ["| images | tokens | parameters | nats/token on validation | probe on test | pixels alone "]
    rows[0] += "| GFLOP an image | times 8x8 | its features |"
    rows.append("|---" * 9 + "|")
    sizes = metrics["sizes"]
    for row in sizes:
        probe, cost = row["probe"], row["training_gflop_per_image"]
        cells = (
            "x".join(map(str, row["grid"])),
            f"{row['tokens_per_image']:,}",
            f"{row['parameters'] / 1e6:.2f}M",
            f"**{row['nats_per_token']:.3f}** ± {row['nats_per_token_standard_error']:.3f}",
            f"**{percent(probe['test_accuracy'])}** (layer {probe['layer']})",
            percent(probe["pixels_test_accuracy"]),
            f"{cost:.3f}",
            f"{cost / sizes[0]['training_gflop_per_image']:.1f}",
            f"{row['feature_gflop_per_image']:.3f}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    probe = sizes[0]["probe"]
    note_of_probe = probe_note(probe["num_images"], probe["test_accuracy"])
    note = (
        f"CIFAR-10, {metrics['optimizer_steps']} steps of {arguments['total_batch_size']} images, "
        f"{arguments['num_hidden_layers']} blocks, {arguments['hidden_size']} wide, seed {results['seeds']['seed']}, "
        "the same images and the palette of the largest ones. ± is the standard error over "
        f"{sizes[0]['validation_images']:,} images. GFLOP forward and backward, and forward of the blocks for "
        f"features, from the config. {note_of_probe} "
        "[resolution.sh](runs/resolution.sh), [JSON](docs/results/resolution.json)."
    )
    return "\n".join([*rows, "", note])


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


def best_layer(name: str) -> str:
    """Accuracy on test of the best layer in the results of a probe."""
    return percent(best_accuracy(read_results(RESULTS / f"{name}.json")["metrics"]))
