"""Time and memory of a training step over sequence length, batch or model size, beside two others.

    python benchmarks/scaling.py --over tokens --output scaling_tokens.json --plot scaling_tokens.png
    python benchmarks/scaling.py --over size --device cuda --dtype bf16 --output scaling_size.json

Forward, backward and fused AdamW on random tokens: our causal head as Trainer runs it, transformers' ImageGPT at its
fastest settings, and a plain GPT of the nanoGPT kind (`plain_gpt.py`) of the same sizes; also ours with gradient
checkpointing, over batches ours with its logits, and on a GPU ours and the plain one compiled. Every point runs in a
process of its own, in turns over the kinds, and one that lacks memory is recorded as such. Memory is the peak above
the model: gradients, optimizer states and activations. "Of the peak" counts the matrix products that our model needs,
against square products measured here.
"""

import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import (
    OutOfMemory,
    in_fork,
    parser,
    peak_memory_since,
    resident_memory,
    save_lines,
)

from hf_igpt import ImageGPTConfig
from hf_igpt.configuration_igpt import PRESETS
from hf_igpt.results import write_results


KINDS = ("ours", "ours_logits", "ours_checkpointing", "ours_compiled", "native", "plain", "plain_compiled")
VALUES = 512
BASE = {"tokens": 1024, "batch": 1, "size": "4x256"}
POINTS: dict[str, dict[str, list]] = {
    "cpu": {
        "tokens": [256, 576, 1024, 2304, 4096, 9216],
        "batch": [1, 2, 4, 8, 16],
        "size": ["4x128", "4x256", "6x384", "6x512", "12x512", "12x768"],
    },
    "cuda": {
        "tokens": [256, 576, 1024, 2304, 4096, 9216],
        "batch": [8, 16, 32, 64, 128, 256],
        "size": ["igpt-s", "igpt-m", "igpt-l"],
    },
}
# What is not varied on a GPU: enough work to fill it.
GPU_BASE = {"tokens": 1024, "batch": 16, "size": "igpt-s"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
UNITS = {"tokens": "tokens of an image", "batch": "images at once", "size": "parameters"}


def default_kinds(over: str, is_gpu: bool) -> list[str]:
    """Compiling takes longer than the rest on a CPU; what logits cost depends on the batch."""
    left_out = set() if is_gpu else {"ours_compiled", "plain_compiled"}
    return [kind for kind in KINDS if kind not in left_out and (kind != "ours_logits" or over == "batch")]


def size_fields(size: str) -> dict[str, int]:
    """Fields of a config from a preset's name, or from layers x width in heads of 64."""
    if size in PRESETS:
        return PRESETS[size]
    layers, width = (int(number) for number in size.split("x"))
    return {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": max(1, width // 64)}


def make_config(point: dict[str, Any]) -> ImageGPTConfig:
    side = math.isqrt(point["tokens"])
    if side * side != point["tokens"]:
        raise ValueError(f"`tokens` must be a square number, got {point['tokens']}.")
    return ImageGPTConfig(image_size=side, use_bias=False, **size_fields(point["size"]))


def build(kind: str, config: ImageGPTConfig, device: torch.device) -> tuple[torch.nn.Module, Callable]:
    """A model, and what makes its loss of tokens (batch, tokens)."""
    base, _, option = kind.partition("_")
    layers, width, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
    if base == "ours":
        from hf_igpt import ImageGPTForCausalImageModeling

        model = ImageGPTForCausalImageModeling(config)
        if option == "checkpointing":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = lambda run, tokens: run(labels=tokens, skip_logits=option != "logits").loss  # noqa: E731
    elif base == "native":
        from common import build_native
        from training_step import native_loss as loss

        model = build_native(layers, width, heads, config.n_positions)
    else:
        from plain_gpt import PlainGPT

        model = PlainGPT(layers, width, heads, config.n_positions, VALUES)
        loss = lambda run, tokens: run(tokens)  # noqa: E731
    model = model.to(device).train()
    run = torch.compile(model, fullgraph=True, dynamic=False) if option == "compiled" else model
    return model, lambda tokens: loss(run, tokens)


def measure(kind: str, point: dict[str, Any], device_name: str, dtype_name: str, seconds: float) -> dict[str, Any]:
    """Seconds of steps after the first one, as many as fit into `seconds`, and the peak of memory."""
    device, dtype = torch.device(device_name), DTYPES[dtype_name]
    torch.manual_seed(0)
    model, loss = build(kind, make_config(point), device)
    tokens = torch.randint(0, VALUES, (point["batch"], point["tokens"]), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    is_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated() if is_gpu else resident_memory()

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            value = loss(tokens)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        if is_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first = step()
    times = [step()]  # the first one also makes the optimizer's states, or compiles
    while sum(times) + times[-1] < seconds and len(times) < 50:
        times.append(step())
    peak = torch.cuda.max_memory_allocated() - before if is_gpu else peak_memory_since(before)
    return {
        "seconds": times,
        "first_seconds": first,
        "peak_bytes": peak,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def memory_limit(device: str) -> int | None:
    """On a CPU nine tenths of the memory; a GPU's driver takes address space that isn't memory."""
    return int(0.9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if device == "cpu" else None


def peak_flops(device: str, dtype: str) -> float:
    from hf_igpt.training.cost import matmul_peak

    return matmul_peak(torch.device(device), DTYPES[dtype], seconds=1.0)


def measured_rows(arguments: Any, base: dict[str, Any], kinds: list[str], peak: float) -> list[dict[str, Any]]:
    from hf_igpt.training.cost import training_flops

    rows = []
    for value in arguments.points:
        point = base | {arguments.over: value}
        flops = training_flops(make_config(point)) * point["batch"]
        for kind in kinds:
            row: dict[str, Any] = {"kind": kind, **point, "flops": flops, "out_of_memory": False}
            try:
                row |= in_fork(
                    lambda kind=kind, point=point: measure(
                        kind, point, arguments.device, arguments.dtype, arguments.seconds
                    ),
                    memory_limit(arguments.device),
                )
                median = statistics.median(row["seconds"])
                row |= {
                    "images_per_second": point["batch"] / median,
                    "tokens_per_second": point["batch"] * point["tokens"] / median,
                    "fraction_of_matmul_peak": flops / median / peak,
                }
            except OutOfMemory:
                row["out_of_memory"] = True
            rows.append(row)
            print(describe(row), flush=True)
    return rows


def describe(row: dict[str, Any]) -> str:
    what = f"| {row['size']} | {row['tokens']} | {row['batch']} | {row['kind']} "
    if row["out_of_memory"]:
        return f"{what}| out of memory | | |"
    return (
        f"{what}| {statistics.median(row['seconds']):.3f} | {row['peak_bytes'] / 1e6:,.0f} "
        f"| {100 * row['fraction_of_matmul_peak']:.0f} % |"
    )


def draw(rows: list[dict[str, Any]], over: str, path: str) -> None:
    """Seconds and memory of a step over what is varied, a line for each kind."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {
        "seconds a step": {},
        "peak memory above the model, GB": {},
    }
    sizes = {row["size"]: row["parameters"] for row in rows if row["kind"] == "ours" and not row["out_of_memory"]}
    for row in rows:
        if not row["out_of_memory"] and row["size"] in sizes:
            x = sizes[row["size"]] if over == "size" else row[over]
            figures = (statistics.median(row["seconds"]), row["peak_bytes"] / 1e9)
            for panel, figure in zip(lines.values(), figures, strict=True):
                panel.setdefault(row["kind"].replace("_", ", "), []).append((x, figure))
    save_lines(path, lines, UNITS[over])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--over", choices=UNITS, default="tokens", help="what is varied (default tokens)")
    options.add_argument("--device", choices=POINTS, default="cpu")
    options.add_argument("--dtype", choices=DTYPES, default="fp32", help="bf16 runs under autocast, as in Trainer")
    options.add_argument("--points", nargs="+", help="values of what is varied; sizes are presets or LAYERSxWIDTH")
    options.add_argument("--kinds", nargs="+", choices=KINDS, help="default: all that the device is for")
    options.add_argument("--tokens", type=int, help="where they are not varied (default 1024)")
    options.add_argument("--batch", type=int, help="where it is not varied (default 1, on a GPU 16)")
    options.add_argument("--size", help="where it is not varied (default 4x256, on a GPU igpt-s)")
    options.add_argument("--seconds", type=float, default=4, help="of every point after its first step (default 4)")
    options.add_argument("--plot", help="PNG to draw")
    arguments = options.parse_args()

    is_gpu = arguments.device == "cuda"
    base = {name: getattr(arguments, name) or value for name, value in (GPU_BASE if is_gpu else BASE).items()}
    points = arguments.points or POINTS[arguments.device][arguments.over]
    arguments.points = [point if arguments.over == "size" else int(point) for point in points]
    kinds = arguments.kinds or default_kinds(arguments.over, is_gpu)
    # In a fork as well: this process must neither compute in threads nor start the GPU.
    peak = in_fork(lambda: peak_flops(arguments.device, arguments.dtype))
    print(f"{arguments.dtype} products {peak / 1e12:.2f} TFLOP/s")
    print("| size | tokens | batch | kind | seconds a step | peak above the model, MB | of the peak |\n|" + "---|" * 7)
    rows = measured_rows(arguments, base, kinds, peak)
    if arguments.output:
        metrics = {"rows": rows, "machine": {"matmul_gflops": peak / 1e9}}
        write_results(arguments.output, metrics=metrics, seeds={"seed": 0}, arguments=vars(arguments))
    if arguments.plot:
        draw(rows, arguments.over, arguments.plot)
        print(f"drawn: {Path(arguments.plot).name}")


if __name__ == "__main__":
    main()
