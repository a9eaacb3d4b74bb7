"""Devices that a run is planned for: what they compute and hold, and how much of that training gets."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any


DATA_SHEET, MEASURED, REACHED, GIVEN = "data sheet", "measured", "reached by a run", "given"


# Kernels of a block forward and backward, and of embeddings, head, loss and optimizer, in eager mode: about.
LAUNCHES_PER_BLOCK, LAUNCHES_OUTSIDE = 75, 200


@dataclass(frozen=True)
class Device:
    """
    One device.

    Attributes:
        name: as people call it.
        peak_flops: matrix products in FLOP/s, dense, at the precision of the run.
        peak_source: "data sheet", "measured" (square products), "given", or "reached by a run": what a training run
            computed, pauses for data and all.
        memory_bytes: all of it.
        memory_source: "data sheet" or "measured".
        usable_memory: share of the memory that tensors can take. The rest goes to libraries and to what the allocator
            keeps in pieces.
        wide_share: share of the peak that training reaches with an endlessly wide model. Stated, not measured here,
            for data sheets.
        half_width: width at which training reaches half of that. Products grow with the square of the width, norms,
            activations and sums with the width alone.
        launch_seconds: what a GPU's host needs to start one kernel: small models wait for it.
    """

    name: str
    peak_flops: float
    peak_source: str
    memory_bytes: int
    memory_source: str
    usable_memory: float
    wide_share: float
    half_width: int
    launch_seconds: float

    def least_step_seconds(self, num_layers: int, batches: int) -> float:
        """Time of an optimizer step of so many batches that no batch is too small for."""
        return batches * (num_layers * LAUNCHES_PER_BLOCK + LAUNCHES_OUTSIDE) * self.launch_seconds

    def utilization(self, width: int) -> float:
        """Share of the peak that training a model of this width is predicted to reach."""
        return self.wide_share * width / (width + self.half_width)


@dataclass(frozen=True)
class DataSheet:
    """The published figures of an accelerator: name, dense matrix products in FLOP/s by precision, memory."""

    name: str
    peak_flops: dict[str, float]
    memory_bytes: int


_HOPPER = {"bf16": 989.4e12, "fp16": 989.4e12, "fp32": 66.9e12}
# NVIDIA's for the SXM boards, without sparsity; fp32 without TF32, torch's default.
DATA_SHEETS = {
    "h100": DataSheet("NVIDIA H100 SXM", _HOPPER, 80 * 10**9),
    "h200": DataSheet("NVIDIA H200 SXM", _HOPPER, 141 * 10**9),
}
DEVICES = ("cpu", *DATA_SHEETS)

# Large square products reach about 0.7 of a Hopper's data sheet; nothing has been measured here. Half of the data
# sheet for wide models, and 0.31 of it at width 512, is what well-tuned training reaches.
_GPU_SHARES = {DATA_SHEET: 0.5, MEASURED: 0.7}
_GPU_HALF_WIDTH = 300
_GPU_USABLE = 0.9
_GPU_LAUNCH_SECONDS = 6e-6
# From benchmarks/cost_model.py, which reports how far off they are on the machine it runs on.
_CPU_SHARE = 0.9
_CPU_HALF_WIDTH = 200
# Of every 3 bytes that a CPU's process has in training, about one is in pieces that were freed (the same benchmark).
_CPU_USABLE = 0.65


def planned_device(name: str, precision: str, measured: float | str | None = None) -> Device:
    """
    A device to plan for; the peak of "cpu" is measured on this machine, in half a second.

    Args:
        name: one of `DEVICES`.
        precision: "auto", "fp32", "bf16" or "fp16", as in a recipe.
        measured: of one device, the peak in FLOP/s, or a JSON file that has one: a benchmark's with the machine's
            peaks, or a training run's, whose rate is then taken as it is.

    Raises:
        ValueError: no such device, or a file without a rate.
    """
    if name not in DEVICES:
        raise ValueError(f"`device` must be one of {', '.join(DEVICES)}, got {name!r}.")
    precision = resolved_precision(name, precision)
    flops, source = (None, None) if measured is None else _measured_flops(measured)
    is_cpu = name == "cpu"
    if flops is None:
        flops, source = _own_peak(precision) if is_cpu else (DATA_SHEETS[name].peak_flops[precision], DATA_SHEET)
    shares = dict.fromkeys((MEASURED, GIVEN), _CPU_SHARE) if is_cpu else {**_GPU_SHARES, GIVEN: _GPU_SHARES[MEASURED]}
    half_width = _CPU_HALF_WIDTH if is_cpu else _GPU_HALF_WIDTH
    return Device(
        name="this machine's CPU" if is_cpu else DATA_SHEETS[name].name,
        peak_flops=flops,
        peak_source=source,
        memory_bytes=_own_memory() if is_cpu else DATA_SHEETS[name].memory_bytes,
        memory_source=MEASURED if is_cpu else DATA_SHEET,
        usable_memory=_CPU_USABLE if is_cpu else _GPU_USABLE,
        wide_share=1.0 if source == REACHED else shares[source],
        half_width=0 if source == REACHED else half_width,
        launch_seconds=0.0 if is_cpu else _GPU_LAUNCH_SECONDS,
    )


def resolved_precision(name: str, precision: str) -> str:
    """What "auto" stands for on a device."""
    if precision != "auto":
        return precision
    return "bf16" if name != "cpu" or has_amx() else "fp32"


def has_amx() -> bool:
    """Whether this machine's CPU multiplies matrices in bf16 faster than in fp32; without AMX it is no faster."""
    import torch

    return torch.cpu._is_amx_tile_supported()


@functools.cache
def _own_peak(precision: str) -> tuple[float, str]:
    import torch

    from hf_igpt.training import cost

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    return cost.matmul_peak(torch.device("cpu"), dtype), MEASURED


def _own_memory() -> int:
    from hf_igpt.results import hardware

    memory = hardware()["memory_bytes"]
    if memory is None:
        raise ValueError("This machine doesn't say how much memory it has, so that `device: cpu` can't be planned.")
    return memory


def _measured_flops(measured: float | str) -> tuple[float, str]:
    from hf_igpt.results import read_results

    if isinstance(measured, float | int):
        return float(measured), GIVEN
    if not Path(measured).exists():
        raise ValueError(f"`measured_flops` must be a number of FLOP/s or a results JSON, got {measured!r}.")
    results = read_results(measured)
    peak = _number(results["metrics"].get("machine"), "matmul_gflops")
    if peak is not None:
        return peak * 1e9, MEASURED
    flops = _number(results["metrics"], "training_flops")
    seconds, processes = _number(results, "training_seconds"), _number(results, "processes")
    if flops is None or seconds is None:
        raise ValueError(
            f"`measured_flops`: {measured} has neither `metrics.machine.matmul_gflops`, which benchmarks write, nor "
            "`metrics.training_flops` and `training_seconds`, which pretrain writes."
        )
    return flops / seconds / (processes or 1), REACHED


def _number(holder: Any, name: str) -> float | None:
    value = holder.get(name) if isinstance(holder, dict) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return float(value) if is_number else None
