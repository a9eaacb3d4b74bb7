"""Lets the public tool ckpt-chaos loose on IGPTTrainer and on transformers' Trainer, and writes what it found as JSON.

    pip install ckpt-chaos==0.1.8
    python benchmarks/checkpoint_chaos.py --output outputs/checkpoint-chaos.json

The tool's own target for Trainer (a tiny GPT-2, killed at every file event of a save, files of torch.save and
safetensors also cut in half) runs once as it is and once with our class in place of Trainer's. Trials and verdicts are
the tool's; only its processes are forks of this one, for importing would take most of their time.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
import traceback
import types
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from ckpt_chaos import runner

from hf_igpt.results import print_results, write_results
from hf_igpt.training.trainer import IGPTTrainer


class Fork:
    """What the tool takes for a `subprocess.Popen` of one of its targets."""

    def __init__(self, command: list[str], cwd: str, env: dict[str, str], stdout: Any, stderr: int):
        self.code: int | None = None
        if (child := os.fork()) != 0:
            self.pid = child
            return
        status = 1
        try:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(env)
            _run_target(*command[2:])
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code

    def wait(self) -> int:
        """Waits for the exit status."""
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code

    def kill(self) -> None:
        """Ends it at once."""
        os.kill(self.pid, signal.SIGKILL)


def _run_target(name: str, *arguments: str) -> None:
    """One phase of the tool's target for Trainer; under our name with our class in place of Trainer."""
    torch.set_num_threads(1)
    from ckpt_chaos.targets import hf_trainer

    if name == "IGPTTrainer":
        hf_trainer.Trainer = IGPTTrainer
    sys.argv = [name, *arguments]
    hf_trainer.main()


def verdicts(work: Path, target: str, ranks: int) -> dict[str, Any]:
    """The tool's verdict on every trial; a finished folder is judged again, not run."""
    if any(work.glob("pt_*/result.json")):
        rows = runner.rejudge(work)
    else:
        rows = runner.run_matrix(work, jobs=1, ranks=ranks, target=target)
    return {
        "runs": len(rows),
        "verdicts": dict(sorted(Counter(row.verdict for row in rows).items())),
        "trials": [f"{row.label}: {row.verdict}" for row in rows],
    }


def main() -> int:
    """Runs the tool on both and writes the results; the exit status is 1 unless all of ours pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/checkpoint-chaos.json", help="JSON file to write")
    parser.add_argument("--work", default="outputs/checkpoint-chaos", help="folder for the tool's trials")
    parser.add_argument("--ranks", type=int, default=1, help="processes of a trial")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runner.TARGETS |= {"igpt_trainer": "IGPTTrainer"}
    # The tool's alone: subprocess itself stays what it is.
    runner.subprocess = types.SimpleNamespace(Popen=Fork, STDOUT=subprocess.STDOUT)
    work = Path(arguments.work).resolve()
    found = {
        name: verdicts(work / name, target, arguments.ranks)
        for name, target in (("IGPTTrainer", "igpt_trainer"), ("Trainer", "hf_trainer"))
    }
    results = write_results(
        arguments.output,
        metrics={name: {key: answer[key] for key in ("runs", "verdicts")} for name, answer in found.items()},
        arguments={"ranks": arguments.ranks, "ckpt_chaos": metadata.version("ckpt-chaos")},
        trials={name: answer["trials"] for name, answer in found.items()},
    )
    print_results({name: value for name, value in results.items() if name != "trials"})
    return int(set(found["IGPTTrainer"]["verdicts"]) != {"PASS"})


if __name__ == "__main__":
    sys.exit(main())
