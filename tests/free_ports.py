"""Ports for processes that are to meet."""

import contextlib
import itertools
import os
import socket


_numbers = itertools.count()


def free_port() -> int:
    """
    A port below those that the system deals out to connections, which would take it before the processes do; and
    another one each time. Of processes that ask at the same time each has 200 of its own.
    """
    while True:
        port = 10_000 + os.getpid() % 100 * 200 + next(_numbers) % 200
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
