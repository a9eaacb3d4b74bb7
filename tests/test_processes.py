import os
import signal
import subprocess
import sys
import time

import pytest


POOL = """
import sys, time
import multiprocess
from hf_igpt.processes import forks_die_with_this_process

with forks_die_with_this_process(), multiprocess.Manager() as manager, multiprocess.Pool(2) as pool:
    pids = [manager._process.pid, *(worker.pid for worker in pool._pool)]
    print(*pids, flush=True)
    time.sleep(60)
"""


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_pool_ends_with_the_process_that_made_it(number):
    """As `Dataset.map` makes one, with a manager beside it."""
    with subprocess.Popen([sys.executable, "-c", POOL], stdout=subprocess.PIPE, text=True) as process:
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 3 and all(map(is_running, pids))
        os.kill(process.pid, number)
        process.wait()
    ends = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < ends:
        time.sleep(0.02)
    assert not any(map(is_running, pids))
