import json
import os
import subprocess
import sys
from pathlib import Path

import fault_harness
import pytest


@pytest.fixture(scope="session")
def harness(tmp_path_factory):
    """The process that forks trials: importing once for all of them is most of their time."""
    errors = tmp_path_factory.mktemp("harness") / "stderr"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (
        open(errors, "wb") as stderr,
        subprocess.Popen(
            [sys.executable, fault_harness.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            text=True,
        ) as process,
    ):

        def call(name: str, folder: Path, **arguments):
            process.stdin.write(json.dumps([name, str(folder), arguments]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, errors.read_text()[-4000:]
            return json.loads(answer)

        yield call
        process.stdin.close()
