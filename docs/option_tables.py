"""Tables of what options are worth."""

from typing import Any

from table_parts import RESULTS, likelihood_and_probe, listed, probe_note

from hf_igpt.results import read_results


CONTESTANTS = {
    "native": "transformers' ImageGPT under Trainer",
    "plain": "plain GPT in a loop",
    "ours": "`hf-igpt pretrain cifar10-speedrun`",
}


def speedrun_table() -> str:
    """Seconds of training to a likelihood, over seeds."""
    results = read_results(RESULTS / "speedrun.json")
    metrics, hardware = results["metrics"], results["hardware"]
    rows = ["| who | seconds | of the seeds | nats/token on validation | steps of 16x16 | learning rate | tried |"]
    rows.append("|---" * 7 + "|")
    for name, row in metrics["contestants"].items():
        seconds = ", ".join(f"{each:.0f}" for each in row["seconds"])
        nats = ", ".join(f"{each:.3f}" for each in row["validation_nats_per_token"])
        length = f"{row['steps']}, after {row['small_steps']} of 8x8" if row["small_steps"] else f"{row['steps']}"
        tried = "; ".join(
            f"{steps}: " + ", ".join(f"{rate:g}" for rate in rates) for steps, rates in _rates_tried(row["tried"])
        )
        rows.append(
            f"| {CONTESTANTS[name]} | **{row['median_seconds']:.0f}** | {seconds} | {nats} | {length} "
            f"| {row['learning_rate']:g} | {tried} |"
        )
    layers, width, heads, batch = metrics["sizes"]
    note = (
        f"Seconds of training alone to at most {metrics['target']} nats/token on average: the better peer takes "
        f"**{metrics['times_faster_than_the_better_peer']:.1f} times** as long as ours. CIFAR-10 at 16x16, the "
        f"same palette and tokens, {layers} blocks, {width} wide, {heads} heads, batches of {batch}, seeds "
        f"{', '.join(map(str, metrics['contestants']['ours']['seeds']))}, on {hardware['cores']} cores of "
        f"{hardware['cpu']}. [speedrun.sh](runs/speedrun.sh), [JSON](docs/results/speedrun.json)."
    )
    return "\n".join([*rows, "", note])


def _rates_tried(runs: list[dict[str, Any]]) -> list[tuple[int, list[float]]]:
    """The rates that were tried at every length."""
    by_steps: dict[int, set[float]] = {}
    for run in runs:
        by_steps.setdefault(run["steps"], set()).add(run["learning_rate"])
    return [(steps, sorted(rates)) for steps, rates in sorted(by_steps.items())]


def speedrun_ratio() -> str:
    """How many times less time ours takes than the better peer."""
    metrics = read_results(RESULTS / "speedrun.json")["metrics"]
    return f"{metrics['times_faster_than_the_better_peer']:.1f}"


def trials_table() -> str:
    """Options that the package doesn't have, each on one small GPT, over seeds."""
    results = read_results(RESULTS / "option-trials.json")
    metrics = results["metrics"]
    rows = ["| option | nats/token on validation | its seeds | probe on test | its seeds |", "|---" * 5 + "|"]
    by_option: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(metrics["runs"], key=lambda run: run["seed"]):
        by_option.setdefault(run["option"], []).append(run)
    for option, runs in by_option.items():
        rows.append(f"| {option} | {likelihood_and_probe(runs)} |")
        seeing = [run | {"probe": run["probe_that_sees_all"]} for run in runs if "probe_that_sees_all" in run]
        if seeing:
            probes = " | ".join(likelihood_and_probe(seeing).split(" | ")[2:])
            rows.append(f"| the same, features of pixels that see the whole image | | | {probes} |")
    layers, width, heads, batch = metrics["sizes"]
    accuracy = by_option["nothing"][0]["probe"]["test_accuracy"]
    note = (
        f"A GPT of {layers} blocks, {width} wide, {heads} heads, with Muon and rotary positions; CIFAR-10 at 16x16, "
        f"{metrics['steps']} steps of {batch} images, seeds {listed(results['seeds'].values())}. "
        f"{probe_note(metrics['probe_images'], accuracy)} "
        "[options.sh](runs/options.sh), [JSON](docs/results/option-trials.json)."
    )
    return "\n".join([*rows, "", note])
