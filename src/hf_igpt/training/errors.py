"""Errors of a training run, importable without torch."""

import signal


class TrainingStopped(RuntimeError):
    """Training ended early on purpose; the message says why and what to do."""


class TrainingInterrupted(TrainingStopped):
    """
    SIGTERM or Ctrl-C ended training after a whole step; run again, it goes on.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, number: int, what_is_kept: str):
        self.signal = number
        name = signal.Signals(number).name
        super().__init__(f"{name} ended training: {what_is_kept}. Run the same command again to continue.")


class LostProcessError(TrainingStopped):
    """Another process of the run ended or stopped answering; its own error is the cause."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that a device, or the machine, has no memory left for a tensor."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
