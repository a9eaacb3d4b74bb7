"""Errors of a training run, importable without torch."""


class TrainingStopped(RuntimeError):
    """Training ended early on purpose; the message says why and what to do."""
