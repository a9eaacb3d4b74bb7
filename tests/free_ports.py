"""Ports for processes that are to meet."""

import contextlib
import itertools
import os
import socket


_numbers = itertools.count()


def free_port() -> int:
    """
    A port below those that the system deals out to connections, which would take it before the processes do; and
    another one each time, in each process that asks.
    """
    while True:
        port = 10_000 + (37 * os.getpid() + next(_numbers)) % 20_000
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
