"""Errors of a training run, importable without torch."""


class TrainingStopped(RuntimeError):
    """Training ended early on purpose; the message says why and what to do."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that a device, or the machine, has no memory left for a tensor."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
