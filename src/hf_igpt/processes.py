"""The processes of a command."""

from datetime import timedelta
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from accelerate import PartialState


def use_cpu() -> bool:
    """Whether there is nothing faster than the CPU."""
    import torch

    return not torch.accelerator.is_available()


def process_state() -> "PartialState":
    """
    accelerate's state of this process, joined with the others.

    Without being told to use the CPU, accelerate takes each of several processes on a machine without a GPU for the
    only one. The first process may keep the others waiting for as long as it tokenizes: hours for large data.
    """
    from accelerate import PartialState

    return PartialState(cpu=use_cpu(), timeout=timedelta(days=1))
