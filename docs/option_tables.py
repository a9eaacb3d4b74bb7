"""Tables of what options are worth."""

from table_parts import RESULTS

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
    rows = [
        "| who | seconds | of the seeds | nats/token on validation | steps of 16x16 | learning rate | rates tried |"
    ]
    rows.append("|---" * 7 + "|")
    for name, row in metrics["contestants"].items():
        seconds = ", ".join(f"{each:.0f}" for each in row["seconds"])
        nats = ", ".join(f"{each:.3f}" for each in row["validation_nats_per_token"])
        steps = f"{row['steps']}, after {row['small_steps']} of 8x8" if row["small_steps"] else f"{row['steps']}"
        rates = sorted({run["learning_rate"] for run in row["tried"]})
        tried = ", ".join(f"{rate:g}" for rate in rates)
        rows.append(
            f"| {CONTESTANTS[name]} | **{row['median_seconds']:.0f}** | {seconds} | {nats} | {steps} "
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


def speedrun_ratio() -> str:
    """How many times less time ours takes than the better peer."""
    metrics = read_results(RESULTS / "speedrun.json")["metrics"]
    return f"{metrics['times_faster_than_the_better_peer']:.1f}"
