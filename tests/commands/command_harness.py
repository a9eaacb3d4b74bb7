"""
A process that has imported everything once and runs each command in a child of its own: starting Python and importing
is most of a command's time. It reads one request a line, `["start", {...}]` or `["wait", child]`, and answers in JSON.
"""

import functools
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import accelerate
import datasets
import matplotlib.figure
import sklearn.datasets
import torch
import transformers

import hf_igpt.training.trainer
from hf_igpt import plots
from hf_igpt.data import preparation
from hf_igpt.training import cost, pretraining
from hf_igpt.training.trainer import IGPTTrainer


sys.path.append(str(Path(__file__).parents[1] / "training"))

from fsdp_on_cpu import launch_environment, shard_on_cpu  # noqa: E402


IMPORTED = (accelerate, datasets, matplotlib.figure, sklearn.datasets, torch, transformers, hf_igpt.training.trainer)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_around(module, name: str, after: bool) -> None:
    function = getattr(module, name)

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        if not after:
            _kill()
        result = function(*args, **kwargs)
        _kill()
        return result

    setattr(module, name, wrapped)


def _at_step(step: int, act) -> None:
    """Acts before the optimizer step of that number, counted from 1."""
    training_step = IGPTTrainer.training_step

    def wrapped(self, *args, **kwargs):
        if self.state.global_step + 1 == step:
            act()
        return training_step(self, *args, **kwargs)

    IGPTTrainer.training_step = wrapped


def _out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def _nan_weight(step: int) -> None:
    compute_loss = IGPTTrainer.compute_loss

    def wrapped(self, model, inputs, **kwargs):
        loss = compute_loss(self, model, inputs, **kwargs)
        return loss * torch.nan if self.state.global_step + 1 == step and model.training else loss

    IGPTTrainer.compute_loss = wrapped


def _hold() -> None:
    Path("held").touch()
    while not Path("release").exists():
        time.sleep(0.02)


class _Without:
    """An import finder for which a package isn't installed."""

    def __init__(self, finder, package: str):
        self.finder, self.package = finder, package

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] == self.package else self.finder.find_spec(name, path, target)


def _uninstall(package: str) -> None:
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        del sys.modules[module]
    sys.meta_path[:] = [_Without(finder, package) for finder in sys.meta_path]


FAULTS = {
    "kill after palette": lambda: _kill_around(preparation, "prepare_palette", after=True),
    "kill after tokens": lambda: _kill_around(preparation, "prepare_tokens", after=True),
    "kill before step 2": lambda: _at_step(2, _kill),
    "kill before step 4": lambda: _at_step(4, _kill),
    "kill before step 8": lambda: _at_step(8, _kill),
    "kill before model": lambda: _kill_around(IGPTTrainer, "save_model", after=False),
    "kill after model": lambda: _kill_around(pretraining, "_metrics", after=False),
    "kill before results": lambda: _kill_around(plots, "save_loss_curve", after=True),
    "out of memory": lambda: _at_step(3, _out_of_memory),
    "nan": lambda: _nan_weight(4),
    "hold": lambda: _at_step(1, _hold),
    "none, but shards": lambda: shard_on_cpu(launch_environment("fsdp2")),
}


def _child(command: str, arguments: list[str], folder: str, cache: str, fault: str | None, environment) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    datasets.config.HF_DATASETS_CACHE = Path(cache)
    # Half a second a run for a figure that no test looks at.
    cost.matmul_peak = lambda device, dtype: 1e12
    if fault and fault.startswith("missing "):
        _uninstall(fault.removeprefix("missing "))
    elif fault:
        FAULTS[fault]()
    sys.argv = ["hf-igpt", command, *arguments]
    importlib.import_module(f"hf_igpt.commands.{command}").main(arguments)


def start(output: str, **request) -> int:
    """Starts a command; what it prints goes to the files `output`.out and `output`.err."""
    if (child := os.fork()) != 0:
        return child
    status = 1
    try:
        for name, descriptor in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        _child(**request)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait(child: int) -> int:
    """The exit status of a child; minus the signal if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        action, request = json.loads(line)
        print(json.dumps(start(**request) if action == "start" else wait(request)), flush=True)
