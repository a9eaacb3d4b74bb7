"""Commands in processes of their own, for the tests of commands and of what the documentation says about them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from free_ports import free_port
from line_process import line_process


@dataclass
class Run:
    """A command that ended: exit status, and the two streams."""

    status: int
    stdout: str
    stderr: str

    @property
    def results(self) -> dict:
        """What the last line of stdout holds."""
        return json.loads(self.stdout.splitlines()[-1])

    @property
    def cause(self) -> str:
        """The last line of stderr, of a run that failed for a reason a user can mend."""
        assert self.status == 1, self.stderr
        assert "Traceback" not in self.stderr, self.stderr
        last = self.stderr.splitlines()[-1]
        assert last.startswith("error: "), self.stderr
        return last


@dataclass
class Harness:
    ask: Callable
    folder: Path
    count: int = 0
    outputs: dict[int, Path] = field(default_factory=dict)

    def start(self, command, *arguments, cwd, fault=None, environment=None) -> int:
        self.count += 1
        output = self.folder / f"run-{self.count}"
        request = {"command": command, "arguments": list(map(str, arguments)), "folder": str(cwd), "fault": fault}
        request |= {"cache": str(cwd / "cache"), "environment": environment or {}, "output": str(output)}
        child = self.ask("start", request)
        self.outputs[child] = output
        return child

    def wait(self, child: int) -> Run:
        status = self.ask("wait", child)
        output = self.outputs.pop(child)
        return Run(status, output.with_suffix(".out").read_text(), output.with_suffix(".err").read_text())

    def __call__(self, *arguments, **options) -> Run:
        return self.wait(self.start(*arguments, **options))

    def on_two_processes(self, *arguments, **options) -> Run:
        """The end of the first of two processes that really are two; the other one prints no results."""
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **place}
        ranks = [group | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
        children = [self.start(*arguments, environment=environment, **options) for environment in ranks]
        first, second = map(self.wait, children)
        assert (first.status, second.status) == (0, 0), first.stderr + second.stderr
        # torch 2.8 lets gloo say on stdout that it is connected.
        assert [line for line in second.stdout.splitlines() if not line.startswith("[Gloo]")] == []
        return first


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Runs a command in a process of its own: `run("pretrain", "tiny.yaml", cwd=folder)` gives a `Run`."""
    folder = tmp_path_factory.mktemp("harness")
    script = Path(__file__).parent / "commands" / "command_harness.py"
    environment = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    with line_process(script, folder / "harness.err", **environment) as ask:
        yield Harness(ask, folder)
