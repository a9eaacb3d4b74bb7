"""Several processes of which one ends or stops answering: the others end too, within a stated time."""

import contextlib
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed

from hf_igpt.training.errors import LostProcessError


# What gloo and NCCL say of a process that is gone.
_SIGNS = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "timed out waiting",
    "application timeout",
    "socket timeout",
    "connection refused",
    "watchdog",
)
# A launcher that sees the first process end takes the others down: its error is then the last that is shown.
GRACE_SECONDS = 1.0


@contextlib.contextmanager
def lost_processes_end_this_one(seconds: float) -> Iterator[None]:
    """
    Inside, processes wait for each other no longer than so many seconds.

    Raises:
        LostProcessError: another process ended, or didn't answer in that time.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        yield
        return
    before = _timeouts()
    _set_timeouts(dict.fromkeys(before, timedelta(seconds=seconds)))
    try:
        yield
    except RuntimeError as error:
        if not _tells_of_lost_process(error):
            raise
        time.sleep(GRACE_SECONDS)
        raise LostProcessError(
            f"Process {torch.distributed.get_rank()} lost another one, which ended or did not answer for "
            f"{seconds:g} seconds (`ddp_timeout`): look for its own error. The last checkpoint is kept. ({error})"
        ) from error
    finally:
        _set_timeouts(before)


def _timeouts() -> dict["torch.distributed.Backend", timedelta]:
    group = torch.distributed.distributed_c10d._get_default_group()
    backends = {group._get_backend(torch.device(kind)) for kind in {device.type for device in group._device_types}}
    return {backend: backend.options._timeout for backend in backends if hasattr(backend, "options")}


def _set_timeouts(timeouts: dict["torch.distributed.Backend", timedelta]) -> None:
    for backend, timeout in timeouts.items():
        backend._set_default_timeout(timeout)


def _tells_of_lost_process(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(sign in text for sign in _SIGNS)
