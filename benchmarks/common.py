"""What the benchmarks share: equal models of both packages, paired timing, the machine's peaks."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import torch
from transformers import ImageGPTConfig as NativeConfig
from transformers import ImageGPTForCausalImageModeling as NativeModel

from hf_igpt import ImageGPTForCausalImageModeling
from hf_igpt.results import hardware
from hf_igpt.training.cost import matmul_peak


def parser(description: str, *, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--repeats", type=int, default=repeats, help=f"paired runs; medians count (default {repeats})"
    )
    options.add_argument("--output", help="results JSON to write")
    return options


def build_native(layers: int, width: int, heads: int, tokens: int) -> NativeModel:
    """transformers' ImageGPT without dropout, every parameter random so that logits differ."""
    torch.manual_seed(0)
    config = NativeConfig(
        n_layer=layers, n_embd=width, n_head=heads, n_positions=tokens, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    model = NativeModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def build_ours(native: NativeModel, **options) -> ImageGPTForCausalImageModeling:
    """Our model with the same weights, biases included."""
    with tempfile.TemporaryDirectory() as folder:
        native.save_pretrained(folder)
        return ImageGPTForCausalImageModeling.from_pretrained(folder, **options)


def paired_seconds(
    works: dict[str, Callable[[], object]],
    repeats: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each piece of work, in turns, so that a machine that slows down slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(-warm_up, repeats):
        for name, work in works.items():
            start = clock()
            work()
            elapsed = clock() - start
            if repeat >= 0:
                seconds[name].append(elapsed)
    return seconds


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median of the pairs' ratios."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def memory_above(start: Callable[[], Callable[[], object]]) -> float:
    """
    Peak resident memory in MB that a piece of work adds to what `start` has set up, in a fork of this process. Linux.
    """
    import multiprocessing

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()
    process = context.Process(target=_report_memory, args=(start, sender))
    process.start()
    try:
        return receiver.recv()
    finally:
        process.join()


def _report_memory(start: Callable[[], Callable[[], object]], sender) -> None:
    work = start()
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")  # forgets the peak so far
    before = _status("VmRSS")
    work()
    sender.send((_status("VmHWM") - before) / 1e6)


def _status(field: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def machine_peaks() -> dict[str, float]:
    """Measured matrix-product and memory-reading peaks of this machine, to print beside every table."""
    block = torch.ones(32 * 1024 * 1024)
    reading = min(seconds_of(block.sum) for _ in range(5))
    return {
        "matmul_gflops": matmul_peak(torch.device("cpu"), torch.float32, seconds=1.0) / 1e9,
        "memory_gb_per_second": block.numel() * 4 / reading / 1e9,
    }


def describe_machine(peaks: dict[str, float]) -> str:
    """One line for above a table."""
    machine = hardware()
    return (
        f"{machine['cpu']}, {machine['cores']} cores, fp32 products {peaks['matmul_gflops']:.0f} GFLOP/s, "
        f"reading memory {peaks['memory_gb_per_second']:.0f} GB/s"
    )


def seconds_of(work: Callable[[], object]) -> float:
    """What a piece of work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
