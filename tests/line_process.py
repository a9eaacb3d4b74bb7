"""A process that has imported everything once and answers requests: importing is most of the time of a trial."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def line_process(script: Path, errors: Path, **environment: str) -> Iterator[Callable[..., Any]]:
    """
    Starts a script that answers each line of JSON with another, and gives the function that asks it. Its stderr goes
    to the file `errors`. Raises RuntimeError with the end of that where it ends in place of an answer.
    """
    with (
        errors.open("ab") as stderr,
        subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            text=True,
        ) as process,
    ):

        def ask(*request: Any) -> Any:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            if not (answer := process.stdout.readline()):
                raise RuntimeError(f"{script.name} ended in {request}: {errors.read_text(errors='replace')[-4000:]}")
            return json.loads(answer)

        yield ask
