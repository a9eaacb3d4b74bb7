"""Two processes that really are two, for functions of a test module."""

import gc
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing
from free_ports import free_port


def on_two_processes(function: Callable[..., None], *arguments: Any) -> None:
    """
    Calls a function of a module in two fresh processes that find each other as under torchrun. They are no forks: a
    fork of a process that has computed on several threads waits for threads that it doesn't have.
    """
    torch.multiprocessing.spawn(_one_of_two, args=(free_port(), function, arguments), nprocs=2)


def _one_of_two(rank: int, port: int, function: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    function(*arguments)
    assert torch.distributed.get_world_size() == 2
    assert torch.distributed.get_backend() == "gloo"
    # What outlives the group would wait for the other process's connections, now and then forever.
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
