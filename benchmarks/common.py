"""What the benchmarks share: equal models of both packages, paired timing, the machine's peaks."""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from transformers import ImageGPTConfig as NativeConfig
from transformers import ImageGPTForCausalImageModeling as NativeModel

from hf_igpt import ImageGPTForCausalImageModeling
from hf_igpt.results import hardware
from hf_igpt.storage import atomic_path
from hf_igpt.training.cost import matmul_peak


T = TypeVar("T")


class OutOfMemory(Exception):
    """A piece of work needs more memory than there is."""


def parser(description: str, *, repeats: int | None = None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; without `repeats` for one that repeats for a time."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if repeats is not None:
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

    def measure() -> float:
        work = start()
        before = resident_memory()
        work()
        return peak_memory_since(before) / 1e6

    return in_fork(measure)


def in_fork(work: Callable[[], T], memory_limit: int | None = None) -> T:
    """
    What `work` returns, in a fork of this process, which must not have computed in threads or used a GPU before.

    Args:
        memory_limit: bytes of address space of the fork, so that it lacks memory before the machine does.

    Raises:
        OutOfMemory: in the fork, or the fork was killed.
        RuntimeError: the fork failed otherwise.
    """
    import multiprocessing

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(work, memory_limit, sender))
    process.start()
    sender.close()
    try:
        result, error, lacks_memory = receiver.recv()
    except EOFError:
        process.join()
        raise OutOfMemory(f"killed with exit code {process.exitcode}") from None
    process.join()
    if lacks_memory:
        raise OutOfMemory(error)
    if error is not None:
        raise RuntimeError(error)
    return result


def _send_result(work: Callable[[], object], memory_limit: int | None, sender) -> None:
    from hf_igpt.training.errors import is_out_of_memory

    if memory_limit is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    try:
        sender.send((work(), None, False))
    except Exception as error:
        lacks_memory = isinstance(error, MemoryError) or is_out_of_memory(error) or "bad_alloc" in str(error)
        sender.send((None, f"{type(error).__name__}: {error}", lacks_memory))


def resident_memory() -> int:
    """Resident memory in bytes; the peak is forgotten. Linux."""
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")
    return _status("VmRSS")


def peak_memory_since(before: int) -> int:
    """Bytes that the peak since `resident_memory` lies above what that returned."""
    return _status("VmHWM") - before


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


def save_lines(path: str, panels: dict[str, dict[str, list[tuple[float, float]]]], unit: str) -> None:
    """Draws panels side by side into a PNG: points (x, y) by the name of a line, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set(xscale="log", yscale="log", xlabel=unit, ylabel=title)
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def seconds_of(work: Callable[[], object]) -> float:
    """What a piece of work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
