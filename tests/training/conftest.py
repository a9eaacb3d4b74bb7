from pathlib import Path

import fault_harness
import pytest
from line_process import line_process


@pytest.fixture(scope="session")
def harness(tmp_path_factory):
    """Calls a function of the process that forks trials: `harness("random_kills", folder, trials=2)`."""
    errors = tmp_path_factory.mktemp("harness") / "stderr"
    with line_process(Path(fault_harness.__file__), errors) as ask:
        yield lambda name, folder, **arguments: ask(name, str(folder), arguments)
