"""The processes of a command."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar


if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import nn

T = TypeVar("T")


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


def is_sharded(model: "nn.Module") -> bool:
    """Whether each process holds a part of the model only, so that a forward pass needs all of them."""
    from torch.distributed.tensor import DTensor

    # The second is the mark of DeepSpeed's ZeRO-3.
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())


def on_first_process(decide: Callable[[], T]) -> T:
    """What the first process decides, or its ValueError, on every process. All of them must call it together."""
    from accelerate.utils import broadcast_object_list

    state = process_state()
    outcome: list = [None]
    if state.is_main_process:
        try:
            outcome[0] = decide()
        except ValueError as error:
            outcome[0] = error
    broadcast_object_list(outcome)
    if isinstance(outcome[0], ValueError):
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
