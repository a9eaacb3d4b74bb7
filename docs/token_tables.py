"""Tables about what tokens are and what they cost, each from results JSONs."""

import math
from typing import Any

from table_parts import RESULTS, ROOT

from hf_igpt.data.token_store import token_hash_in
from hf_igpt.results import read_results
from hf_igpt.token_kinds_igpt import describe_tokens
from hf_igpt.training.palette_sweep import sweep_table
from hf_igpt.training.throughput import training_seconds


VQVAES = ("digits-vqvae", "cifar10-cpu-vqvae")


def bits_per_dim_table() -> str:
    """Bits/dim of palette models: those of the tokens, and of the colours by either density."""
    rows = ["| images | colours | model | tokens | colours, uniform | colours, empirical | bits/dim | JSON |"]
    rows.append("|---" * 8 + "|")
    smoothings = []
    for images, name, run in (
        ("digits, 8x8", "digits", "digits"),
        ("CIFAR-10, 16x16", "cifar10-16", "cifar10-cpu"),
    ):
        files = {density: f"docs/results/color-bits-{name}-{density}.json" for density in ("uniform", "empirical")}
        found = {density: read_results(ROOT / file) for density, file in files.items()}
        colors = {density: result["metrics"]["bits_per_dim_of_colors"] for density, result in found.items()}
        count = round(math.exp(found["uniform"]["metrics"]["uniform_nats_per_token"]))
        smoothings.append(f"{found['empirical']['metrics']['color_smoothing']:g}")
        _same_palette(run, found["uniform"])
        tokens = read_results(RESULTS / f"{run}-test.json")["metrics"]["nats_per_token"] / math.log(2) / 3
        sums = ", ".join(f"**{tokens + bits:.3f}** {density}" for density, bits in colors.items())
        cells = f"`{run}` | {tokens:.3f} | {colors['uniform']:.3f} | {colors['empirical']:.3f} | {sums}"
        links = [f"[{density}]({file})" for density, file in files.items()]
        links.append(f"[tokens](docs/results/{run}-test.json)")
        rows.append(f"| {images} | {count} | {cells} | {', '.join(links)} |")
    note = (
        "On test images. The colours' bits don't depend on the model: [color-bits.sh](runs/color-bits.sh) measures "
        "them with the palettes of these models. Smoothing, chosen by validation images: "
        f"{', '.join(smoothings)} a colour, in the order of the rows."
    )
    return "\n".join([*rows, "", note])


def _same_palette(run: str, colors: dict[str, Any]) -> None:
    if (palette := token_hash_in(read_results(RESULTS / f"{run}.json"))) != token_hash_in(colors):
        raise ValueError(f"The colours were measured with another palette than that of {run}, {palette}.")


def palette_sweep_table() -> str:
    """One small model at equal FLOPs with palettes of several sizes."""
    results = read_results(RESULTS / "palette-sweep.json")
    rows, arguments, hardware = results["metrics"]["palettes"], results["arguments"], results["hardware"]
    side, flops = arguments["image_size"][0], [row["training_flops"] for row in rows]
    note = (
        f"CIFAR-10 at {side}x{side}, at most {arguments['max_images']:,} images of a split, "
        f"{arguments['num_hidden_layers']} blocks, {arguments['hidden_size']} wide, batches of "
        f"{arguments['total_batch_size']}, seed {arguments['seed']}; the training FLOPs differ by at most "
        f"{100 * (max(flops) / min(flops) - 1):.1f} %. Everything is of test images; validation chose layers, "
        f"penalties and smoothing. Training took {sum(row['training_seconds'] for row in rows) / 60:.0f} minutes on "
        f"one of {hardware['cores']} cores of {hardware['cpu']}, shared with other work. "
        "[Recipe](recipes/palette-sweep-cifar10-cpu.yaml), "
        "[JSON](docs/results/palette-sweep.json)."
    )
    return "\n".join([sweep_table(rows), "", note])


def three_kinds_table() -> str:
    """The same model on a palette's colours, RGB levels and codes."""
    rows = ["| tokens | of an image | GFLOP an image | nats/token | bits/dim | best layer | pixels | JSON |"]
    rows.append("|---" * 8 + "|")
    for kind in ("palette", "rgb", "vqvae"):
        run, test, probe = (read_results(RESULTS / f"three-kinds-{kind}{of}.json") for of in ("", "-test", "-probe"))
        tokens, metrics, scores = run["tokens"], run["metrics"], test["metrics"]
        length = tokens["grid"][0] * tokens["grid"][1] * tokens["num_channels"]
        cost = metrics["training_flops"] / metrics["images_seen"] / 1e9
        found = probe["metrics"]
        pixels = f"{100 * found['pixels']['test_accuracy']:.1f} %" if found["pixels"] else "not run"
        links = [f"[{of}](docs/results/three-kinds-{kind}{end}.json)" for of, end in
                 (("training", ""), ("test", "-test"), ("probe", "-probe"))]  # fmt: skip
        best = f"{100 * found['best']['test_accuracy']:.1f} % (layer {found['best']['layer']})"
        cells = (
            describe_tokens(kind, tokens["num_values"]),
            str(length),
            f"{cost:.2f}",
            f"{scores['nats_per_token']:.3f}",
            _bits(kind, scores),
            best,
            pixels,
            ", ".join(links),
        )
        rows.append(f"| {' | '.join(cells)} |")
    run = read_results(RESULTS / "three-kinds-palette.json")
    arguments, file = run["arguments"], "docs/results/three-kinds-vqvae-model.json"
    psnr = read_results(ROOT / file)["metrics"]["test"]["psnr_db"]
    note = (
        f"CIFAR-10, {arguments['max_images']:,} images of a split: colours and levels of 16x16 pixels, codes of "
        f"32x32. {run['metrics']['optimizer_steps']} steps of {arguments['total_batch_size']} images, "
        f"{arguments['num_hidden_layers']} blocks, {arguments['hidden_size']} wide, one seed. Nats/token don't "
        "compare between kinds; bits/dim do between the first two. Likelihood and accuracy are of test images. The "
        f"VQ-VAE shows test images with a PSNR of {psnr:.1f} dB ([JSON]({file}))."
    )
    return "\n".join([*rows, "", note])


def _bits(kind: str, scores: dict[str, Any]) -> str:
    if scores["bits_per_dim"] is None:
        return "none"
    if kind != "palette":
        return f"**{scores['bits_per_dim']:.3f}**"
    empirical = read_results(RESULTS / "three-kinds-palette-test-empirical.json")["metrics"]["bits_per_dim"]
    return f"**{scores['bits_per_dim']:.3f}** uniform, **{empirical:.3f}** empirical"


def progressive_table() -> str:
    """Likelihood with and without small images first, at equal training FLOPs."""
    results = read_results(RESULTS / "progressive.json")
    names = {"direct": "16x16 from the start", "progressive": "8x8 first, then 16x16"}
    rows = ["| training | nats/token on validation | FLOP | seeds |", "|---|---|---|---|"]
    for way, row in results["metrics"]["ways"].items():
        seeds = ", ".join(f"{run['validation_nats_per_token']:.3f} (seed {run['seed']})" for run in row["runs"])
        steps = " + ".join(f"{count:,} steps" for count in row["runs"][0]["optimizer_steps"])
        flops = f"{row['runs'][0]['training_flops']:.2e}"
        rows.append(f"| {names[way]} ({steps}) | **{row['nats_per_token']:.3f}** | {flops} | {seeds} |")
    note = (
        f"CIFAR-10, a model of {results['metrics']['parameters'] / 1e6:.2f}M parameters, the same palette. "
        "[progressive.sh](runs/progressive.sh), [JSON](docs/results/progressive.json)."
    )
    return "\n".join([*rows, "", note])


def vqvae_table() -> str:
    """What the VQ-VAEs that were trained make of test images."""
    rows = [
        "| run | pixels, codes | codebook | PSNR on test | SSIM | codes used | perplexity | training time |",
        "|---" * 8 + "|",
    ]
    for name in VQVAES:
        run = read_results(RESULTS / f"{name}.json")
        arguments, test, grid = run["arguments"], run["metrics"]["test"], run["metrics"]["grid"]
        sides = arguments["image_size"] * 2 if len(arguments["image_size"]) == 1 else arguments["image_size"]
        ssim = "" if test["ssim"] is None else f"{test['ssim']:.3f}"
        seconds = training_seconds(run["log_history"], arguments["total_batch_size"])
        rows.append(
            f"| [{name}](docs/results/{name}.json) | {sides[0]}x{sides[1]}, {grid[0]}x{grid[1]} "
            f"| {arguments['codebook_size']} | **{test['psnr_db']:.1f} dB** | {ssim} | {test['codes_used']} "
            f"| {test['perplexity']:.0f} | {seconds / 60:.1f} min |"
        )
    note = (
        "PSNR over all pixels of the test split, SSIM (Wang et al., 2004) the mean over its images. Perplexity is the "
        "number of codes that, used equally often, would have the same entropy. Times are of one CPU thread, beside "
        "other work and without validation."
    )
    return "\n".join([*rows, "", note])
