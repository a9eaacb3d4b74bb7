"""The processes of a command."""

import contextlib
import ctypes
import functools
import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar


if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import nn

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1
# The process whose forks are to die with it, while that is asked for.
_mortal_parent: int | None = None


def use_cpu() -> bool:
    """Whether there is nothing faster than the CPU."""
    import torch
    from accelerate.utils import is_torch_xla_available

    return not torch.accelerator.is_available() and not is_torch_xla_available(check_is_tpu=True)


def process_state() -> "PartialState":
    """
    accelerate's state of this process, joined with the others.

    Without being told to use the CPU, accelerate takes each of several processes on a machine without a GPU for the
    only one. The first process may keep the others waiting for as long as it tokenizes: hours for large data.
    """
    from accelerate import PartialState

    return PartialState(cpu=use_cpu(), timeout=timedelta(days=1))


@contextlib.contextmanager
def forks_die_with_this_process() -> Iterator[None]:
    """
    Processes that are forked inside are killed when this one ends, however it ends. The workers of a killed pool would
    wait for work forever. On Linux; elsewhere nothing is done.
    """
    global _mortal_parent
    _watch_forks()
    _mortal_parent = os.getpid()
    try:
        yield
    finally:
        _mortal_parent = None


@functools.cache
def _watch_forks() -> None:
    # Loaded here, for a fork may not be able to.
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def in_child() -> None:
        global _mortal_parent
        parent, _mortal_parent = _mortal_parent, None
        if parent is not None and prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # ended before the call
                os._exit(1)

    os.register_at_fork(after_in_child=in_child)


def is_sharded(model: "nn.Module") -> bool:
    """Whether each process holds a part of the model only, so that a forward pass needs all of them."""
    from torch.distributed.tensor import DTensor

    # The second is the mark of DeepSpeed's ZeRO-3.
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())


def on_first_process(decide: Callable[[], T]) -> T:
    """
    What the first process decides, or its ValueError or OSError, on every process. All of them must call it together.
    """
    from accelerate.utils import broadcast_object_list

    state = process_state()
    outcome: list = [None]
    if state.is_main_process:
        try:
            outcome[0] = decide()
        except (ValueError, OSError) as error:
            outcome[0] = error
    broadcast_object_list(outcome)
    if isinstance(outcome[0], ValueError | OSError):
        raise outcome[0]
    return outcome[0]


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """
    Work of which each process does a share: a ValueError or OSError of one is raised on all of them, the first
    process's first, once all have ended. Otherwise the others would wait for one that is gone.
    """
    failure: list[Exception | None] = [None]
    try:
        yield
    except (ValueError, OSError) as error:
        failure[0] = error
    if (first := next(filter(None, from_all_processes(failure)), None)) is not None:
        raise first


def from_all_processes(items: list[T]) -> list[T]:
    """The lists of all processes as one, in their order, on every process."""
    from accelerate.utils import gather_object

    return gather_object(items) if process_state().num_processes > 1 else items
