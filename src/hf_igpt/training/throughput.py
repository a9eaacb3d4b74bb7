"""Throughput of a training run, for its log."""

import time
from collections.abc import Sequence
from typing import Any


def training_seconds(log_history: Sequence[dict[str, Any]], images_per_step: int) -> float | None:
    """
    Time that a whole run's optimizer steps took, over all its sessions, from the rates in Trainer's log; without
    validation, samples and saving. Steps after the last rate count as much as those before it. None where nothing was
    logged.
    """
    rates = [(entry["step"], entry["images_per_second"]) for entry in log_history if "images_per_second" in entry]
    if not rates:
        return None
    # The log's last entry, of Trainer's end or of an evaluation, has the last step.
    rates.append((log_history[-1]["step"], rates[-1][1]))
    seconds, before = 0.0, 0
    for step, images_per_second in rates:
        seconds += (step - before) * images_per_step / images_per_second
        before = step
    return seconds


class Throughput:
    """
    Images and tokens per second since the last log, over all devices, and the fraction of their measured peak.

    Args:
        tokens_per_image: tokens, or codes, of one image.
        flops_per_image: of a training step, for one image.
        images_per_step: images of one optimizer step over all devices.
        peak_flops: measured matrix-product peak of all devices together in FLOP/s.
    """

    def __init__(self, tokens_per_image: int, flops_per_image: int, images_per_step: int, peak_flops: float):
        self.tokens_per_image = tokens_per_image
        self.flops_per_image = flops_per_image
        self.images_per_step = images_per_step
        self.peak_flops = peak_flops
        self.is_running = False
        self._step = 0
        self._time = 0.0
        self._paused = 0.0

    def start(self, step: int) -> None:
        """Starts the clock at a step: at the first one, or where a run resumes."""
        self.is_running = True
        self._step, self._time, self._paused = step, time.perf_counter(), 0.0

    def pause(self, seconds: float) -> None:
        """Leaves out time that went into something else than training: evaluation, samples, saving."""
        self._paused += seconds

    def since_last_log(self, step: int) -> dict[str, float]:
        """The figures for the log, or nothing where no step has passed."""
        steps, elapsed = step - self._step, time.perf_counter() - self._time - self._paused
        self.start(step)
        if steps <= 0 or elapsed <= 0:
            return {}
        images_per_second = steps * self.images_per_step / elapsed
        return {
            "images_per_second": round(images_per_second, 2),
            "tokens_per_second": round(images_per_second * self.tokens_per_image, 1),
            "fraction_of_matmul_peak": round(images_per_second * self.flops_per_image / self.peak_flops, 4),
        }
