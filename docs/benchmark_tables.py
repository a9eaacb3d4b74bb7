"""Tables of what the scripts in benchmarks measured, each from results JSONs."""

import re
import statistics
from typing import Any

from table_parts import RESULTS, percent

from hf_igpt.parallel_decoding_igpt import FORECASTS
from hf_igpt.results import read_results


# Requests to the demo whose short names say too little.
LOAD_KINDS = {
    "completion": "completion of an uploaded image",
    "inpainting": "inpainting of an uploaded image",
    "leaves": "whole images, page closed midway",
    "out of range": "number out of its range",
    "path": "path on the server in place of an upload",
}
KINDS = {
    "ours": "ours",
    "ours_logits": "ours, logits given",
    "ours_checkpointing": "ours, gradient checkpointing",
    "ours_compiled": "ours, compiled",
    "native": "transformers' ImageGPT",
    "plain": "plain GPT",
    "plain_compiled": "plain GPT, compiled",
}


def benchmarks_table() -> str:
    """Ratios against transformers' ImageGPT, each from one run of a script."""
    step, sampling, quantization = (
        read_results(RESULTS / f"benchmark-{name}.json") for name in ("training-step", "sampling", "quantization")
    )
    rows = [
        "| work | against transformers' ImageGPT | machine, its fp32 products | script, JSON |",
        "|---|---|---|---|",
    ]
    memory = step["metrics"]["peak_megabytes"]
    faster = step["metrics"]["times_faster"]
    work = "training step, {layers} layers x {width} wide, {tokens} tokens, batch {batch}, fp32"
    rows.append(_row(work.format(**step["arguments"]), _times(faster["ours"]), step))
    if "ours_compiled" in faster:
        rows.append(_row("the same, ours compiled", _times(faster["ours_compiled"]), step))
    rows.append(_row("its peak memory above the model", f"{memory['ours'] / memory['native']:.2f} times", step))
    rates = quantization["metrics"]["images_per_second"]
    work = "{num_images:,} images {image_side}x{image_side} to tokens"
    work = work.format(**quantization["arguments"])
    for state in ("cold", "warm"):
        for kind, name in (("native_best_batch", "its best batch"), ("native_single_call", "one call")):
            if kind in rates:
                ratio = rates[f"ours_{state}"] / rates[kind]
                rows.append(_row(f"{work}, {state}, against {name}", _times(ratio), quantization))
    work = "sampling {batch} images of {tokens} tokens, {layers} x {width}".format(**sampling["arguments"])
    rows.append(_row(work, _times(sampling["metrics"]["times_faster"]), sampling))
    bound = sampling["metrics"]["rows"][0]["times_the_bound"]
    rows.append(
        _row("its time, in that of reading weights, keys and values once a step", f"{bound:.2f} times", sampling)
    )
    features, probes = (read_results(RESULTS / f"benchmark-{name}.json") for name in ("features", "probes"))
    found = features["metrics"]
    work = "features of all layers, {layers} x {width}, {tokens} tokens".format(**features["arguments"])
    rows.append(_row(f"{work}, against {found['fastest_native']}", _times(found["times_faster"]), features))
    rows.append(_row("their peak memory above the model", f"{found['peak_megabytes']['ours']:.0f} MB", features))
    for kind, comparison in probes["metrics"]["comparisons"].items():
        what = f"probes of {probes['metrics']['features'][0]} layers, {kind}, against scikit-learn's one by one"
        rows.append(_row(what, _times(comparison["times_faster"]), probes))
    palette = read_results(RESULTS / "cifar10-palette.json")
    fitted, pixels = palette["metrics"], palette["metrics"]["num_pixels"] / 1e6
    note = (
        "Medians of paired runs in one process. Outputs are compared before anything is timed. "
        f"The processor needs {quantization['metrics']['peak_megabytes_ours']:.0f} MB with everything built. "
        f"`fit_palette` takes {palette['wall_seconds']:.0f} seconds for the {pixels:.1f} million pixels of CIFAR-10, "
        f"{fitted['num_colors']} colours, {fitted['psnr_db']:.1f} dB ([JSON](docs/results/cifar10-palette.json))."
    )
    return "\n".join([*rows, "", note])


def scaling_table(over: str) -> str:
    """Seconds and memory of a training step over sequence length, batch or size, a column for each kind of model."""
    results = read_results(RESULTS / f"benchmark-scaling-{over}.json")
    rows = results["metrics"]["rows"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    head = {"tokens": "tokens", "batch": "images at once", "size": "layers x width"}[over]
    table = [f"| {head} | {' | '.join(KINDS[kind] for kind in kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for value in dict.fromkeys(row[over] for row in rows):
        found = {row["kind"]: row for row in rows if row[over] == value}
        table.append(f"| {value} | {' | '.join(_step_cell(found[kind]) for kind in kinds)} |")
    first = rows[0]
    fixed = {"size": "{size}", "tokens": "{tokens} tokens", "batch": "{batch} images"}
    what = ", ".join(text.format(**first) for name, text in fixed.items() if name != over)
    note = (
        f"Seconds of a step and MB of memory above the model: {what}, {results['arguments']['dtype']}, on "
        f"{_device(results)}, products {results['metrics']['machine']['matmul_gflops']:.0f} GFLOP/s. "
        f"[scaling.py](benchmarks/scaling.py), [JSON](docs/results/benchmark-scaling-{over}.json)."
    )
    return "\n".join([*table, "", note])


def _step_cell(row: dict[str, Any]) -> str:
    if row["out_of_memory"]:
        return "out of memory"
    return f"{statistics.median(row['seconds']):.2f} s, {row['peak_bytes'] / 1e6:,.0f} MB"


def _device(results: dict[str, Any]) -> str:
    hardware = results["hardware"]
    if results["arguments"].get("device") == "cuda":
        return hardware["gpus"][0]["name"]
    return f"{hardware['cores']} cores of {hardware['cpu']}"


def roofline_table() -> str:
    """Measured against the limit of the machine, and where the time goes."""
    results = read_results(RESULTS / "benchmark-roofline.json")
    table = ["| work | seconds | limit | reached | what the limit is | where the time goes |", "|---" * 6 + "|"]
    for name, row in results["metrics"]["rows"].items():
        limits = ", ".join(f"{what} {1000 * seconds:.1f} ms" for what, seconds in row["limits"].items())
        shares = sorted((row["shares"] or {}).items(), key=lambda item: -item[1])
        where = ", ".join(f"{what} {100 * share:.0f} %" for what, share in shares if share >= 0.005)
        table.append(
            f"| {name} | {statistics.median(row['seconds']):.3f} | {row['limit_seconds']:.3f} "
            f"| {100 * row['fraction_of_limit']:.0f} % | {limits} | {where} |"
        )
    peaks = results["metrics"]["machine"]
    note = (
        f"On {_device(results)}, {results['arguments']['dtype']}: products {peaks['products_gflops']:.0f} GFLOP/s, "
        f"attention {peaks['attention_gflops']:.0f} forward and {peaks['attention_and_backward_gflops']:.0f} with "
        f"backward, reading memory {peaks['memory_gb_per_second']:.0f} GB/s, all measured in the same run. "
        "[roofline.py](benchmarks/roofline.py), [JSON](docs/results/benchmark-roofline.json)."
    )
    return "\n".join([*table, "", note])


def loading_table() -> str:
    """The data loader alone against what models take."""
    results = read_results(RESULTS / "benchmark-data-loading.json")
    metrics, arguments = results["metrics"], results["arguments"]
    model, gpu = metrics["model_images_per_second"], metrics["gpu_images_per_second_needed"]
    table = ["| augmentation, masks, workers | images/s | times the model's rate here |", "|---|---|---|"]
    for name, row in metrics["rates"].items():
        rate = row["images_per_second"]
        table.append(f"| {name} | {rate:,.0f} | {rate / model:,.0f} |")
    note = (
        f"Batches of {arguments['batch']} images of {arguments['side']}x{arguments['side']}. A model of the size of "
        f"the recipe `cifar10` trains on {model:.1f} images/s on this machine; at {arguments['gpu_fraction']:.0%} of "
        f"{arguments['gpu_tflops']:,.0f} TFLOP/s, an H100's data sheet, it would take {gpu:,.0f} a second. "
        "[data_loading.py](benchmarks/data_loading.py), [JSON](docs/results/benchmark-data-loading.json)."
    )
    return "\n".join([*table, "", note])


def faults_table() -> str:
    """Every fault that was caused: how many trials ended well, ours beside transformers' own Trainer."""
    results = read_results(RESULTS / "fault-injection.json")
    rows = ["| fault | ours | Trainer |", "|---|---|---|"]
    for name, cells in results["metrics"]["rows"].items():
        rows.append(f"| {name} | {_ended_well(cells['ours'])} | {_ended_well(cells.get('Trainer'))} |")
    note = (
        "Trials that ended well, of all. Trainer's others end, most of them, in a checkpoint that stops every later "
        f"start, in lost steps or in damage that nobody notices. Seed {results['seeds']['seed']}, "
        f"{results['hardware']['cores']} cores of {results['hardware']['cpu']}, shared with other work. "
        "[fault_injection.py](benchmarks/fault_injection.py), "
        "[JSON](docs/results/fault-injection.json) of every trial."
    )
    return "\n".join([*rows, "", note])


def _ended_well(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    seconds = f", within {cell['longest_seconds']:.1f} s" if "longest_seconds" in cell else ""
    share = f"{cell['good']} of {cell['trials']}{seconds}"
    return f"**{share}**" if cell["good"] == cell["trials"] else share


def chaos_table() -> str:
    """The verdicts of the tool ckpt-chaos."""
    results = read_results(RESULTS / "checkpoint-chaos.json")
    rows = ["| class | runs | verdicts |", "|---|---|---|"]
    for name, found in results["metrics"].items():
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in found["verdicts"].items())
        rows.append(f"| {name} | {found['runs']} | {verdicts} |")
    arguments = results["arguments"]
    note = (
        f"Version {arguments['ckpt_chaos']}, {arguments['ranks']} process, one of the runs undisturbed. "
        "[checkpoint_chaos.py](benchmarks/checkpoint_chaos.py), [JSON](docs/results/checkpoint-chaos.json)."
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


def parallel_table() -> str:
    """Passes and time of parallel sampling, images that differ, and what a pass costs."""
    results = read_results(RESULTS / "benchmark-parallel-sampling.json")
    metrics = results["metrics"]
    rows = [
        "| model | at once | forecast, pixels a pass | passes | times as fast as transformers' loop "
        "| as our loop, pixel by pixel |",
        "|---|---|---|---|---|---|",
    ]
    notes = []
    for checkpoint, model in metrics["models"].items():
        name = checkpoint.split("/")[1]
        for batch, settings in model["batches"].items():
            for setting, row in settings.items():
                if setting.split(",")[0] not in FORECASTS:
                    continue
                ratios = " | ".join(f"{ratio:.2f}" for ratio in row["times_faster"].values())
                rows.append(
                    f"| `{name}` | {batch} | {setting} | {row['passes']:.1f} of {model['tokens']} | {ratios} |"
                )
        counts = "; ".join(
            f"{row['images']:,} images in {row['dtype']}: "
            + ", ".join(f"{count} with {change}" for change, count in row["different"].items())
            for row in model["rounding"]
        )
        notes.append(
            f"`{name}`: {model['layers']} layers x {model['width']}, {model['values']} values, "
            f"{model['entropy_nats_per_token']:.2f} nats per token of its own images. Images that differ from those "
            f"drawn one pixel a pass, of {counts}."
        )
    costs = "; ".join(f"over {pixels}, {cost:.2f}" for pixels, cost in metrics["pass_costs"].items() if pixels != "1")
    clock = "seconds of the processor" if metrics["clock"] == "processor" else "seconds"
    notes.append(
        f"With 12 layers x 512, one image at once, a pass costs as much as so many steps of our loop: {costs}."
    )
    notes.append(
        f"Paired runs in one process ({results['arguments']['repeats']}, medians), {clock}, "
        f"{metrics['cpu_threads']} of the "
        f"{results['hardware']['cores']} cores of {results['hardware']['cpu']}, float32. "
        "[parallel_sampling.py](benchmarks/parallel_sampling.py), "
        "[JSON](docs/results/benchmark-parallel-sampling.json)."
    )
    return "\n".join([*rows, "", "\n\n".join(notes)])


def demo_load_table() -> str:
    """What came of every request to a demo under load."""
    results = read_results(RESULTS / "demo-load.json")
    arguments, metrics = results["arguments"], results["metrics"]
    rows = ["| request | how many | what came of it |", "|---|---|---|"]
    for kind, outcomes in metrics["outcomes"].items():
        answers = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        rows.append(f"| {LOAD_KINDS.get(kind, kind)} | {sum(outcomes.values())} | {answers} |")
    seconds, queue, hardware = metrics["seconds_to_draw"], metrics["queue"], results["hardware"]
    measured = metrics["resident_megabytes"] | {"in the end": metrics["resident_megabytes"]["after"]}
    memory = [f"{megabytes:.0f} MB {when}" for when, megabytes in measured.items() if when != "after"]
    note = (
        f"{arguments['users']} users at once, {arguments['requests']} requests, on {hardware['cores']} cores of "
        f"{hardware['cpu']} beside much other work. Right: the images that the library draws for this user's image "
        f"and seed. Message: the cause in words. Refused: what no page sends. From asking to the last row it took "
        f"{seconds['median']:.1f} s in the median, {seconds['p95']:.1f} s for 95 % and {seconds['max']:.1f} s at "
        f"most, waiting included; the last in line was number {queue['last_place']}. The server's memory: "
        f"{', '.join(memory)}. Of {metrics['ways_tried']:,} ways to a file that nobody uploaded "
        f"{metrics['files_read']} led to one. [demo_load.py](benchmarks/demo_load.py), "
        "[JSON](docs/results/demo-load.json)."
    )
    return "\n".join([*rows, "", note])


def cost_model_table() -> str:
    """Predicted memory and time of training steps on a CPU against measured ones."""
    results = read_results(RESULTS / "benchmark-cost-model.json")
    cases, hardware = results["metrics"]["cases"], results["hardware"]
    rows = [
        "| training step, fp32 | MB predicted | MB live | error | MB of the process | seconds | of the peak | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        memory, seconds = case["megabytes"], statistics.median(case["seconds"]["measured"])
        rows.append(
            f"| {case['name']} | {memory['predicted']:.0f} | {memory['live']:.0f} | {_signed(case['memory_error'])} "
            f"| {memory['process']:.0f} | {seconds:.2f} | {percent(case['fraction_of_peak'])} "
            f"| {_signed(case['time_error'])} |"
        )
    memory, time = (max(abs(case[f"{what}_error"]) for case in cases) for what in ("memory", "time"))
    flops = results["metrics"]["flops"]
    note = (
        f"On {hardware['cores']} cores of {hardware['cpu']}. The largest errors are {percent(memory)} of the memory "
        f"and {percent(time)} of the time. FLOPs differ from torch's count by "
        f"{abs(flops['counted'] - flops['predicted'])}. MB are above the model: live ones with every tensor in pages "
        "of its own, those of the process with pieces that were freed. [cost_model.py](benchmarks/cost_model.py), "
        "[JSON](docs/results/benchmark-cost-model.json)."
    )
    return "\n".join([*rows, "", note])


def _signed(error: float) -> str:
    return f"{100 * error:+.0f} %"


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times faster" if ratio < 10 else f"{ratio:,.0f} times faster"


def _row(work: str, figure: str, results: dict[str, Any]) -> str:
    script = re.search(r"benchmarks/(\w+)\.py", results["command"])[1]
    json_name = f"benchmark-{script.replace('_', '-')}.json"
    machine, peaks = results["hardware"], results["metrics"].get("machine")
    where = f"{machine['cores']} cores of {machine['cpu']}"
    where += f", {peaks['matmul_gflops']:.0f} GFLOP/s" if peaks else ""
    return f"| {work} | {figure} | {where} | [{script}.py](benchmarks/{script}.py), [JSON](docs/results/{json_name}) |"


def windows_time_table() -> str:
    """Measured time of a training step with windows."""
    results = read_results(RESULTS / "benchmark-windowed-attention.json")
    rows = ["| 3 blocks, 256 wide | 32x32 | 64x64 |", "|---|---|---|"]
    steps = results["metrics"]["steps"]
    for name in steps["32x32"]:
        cells = [f"{steps[side][name]['times_faster_than_full']:.2f}" for side in ("32x32", "64x64")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    machine, peaks = results["hardware"], results["metrics"]["machine"]
    note = (
        "Forward and backward, times faster than full attention: medians of pairs that ran in turns, on "
        f"{machine['cores']} cores of {machine['cpu']} (fp32 products {peaks['matmul_gflops']:.0f} GFLOP/s). Windows "
        "of 4 rows. The mask is what `sdpa` would be given otherwise. "
        "[windowed_attention.py](benchmarks/windowed_attention.py), "
        "[JSON](docs/results/benchmark-windowed-attention.json)."
    )
    return "\n".join([*rows, "", note])
