"""Tiny training runs and the faults that are done to them.

Trials run in forked children of a process that has only imported things, so that one costs a fraction of a second and
a kill is a real one. As a script it is that process: it reads lines of JSON, [name, folder, arguments], calls one of
`COMMANDS` for each, and answers with a line of JSON.
"""

import contextlib
import functools
import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers.modeling_utils
from datasets import Dataset, Features, List, Value
from fsdp_on_cpu import shard_on_cpu
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_igpt import ImageGPTConfig, ImageGPTForCausalImageModeling, storage
from hf_igpt.data.loading import TokenCollator, TokenDataset
from hf_igpt.processes import is_sharded
from hf_igpt.storage import DamagedFolderError, list_checkpoints, newest_complete_checkpoint
from hf_igpt.training.trainer import IGPTTrainer
from hf_igpt.weights import weights_digest


sys.path.append(str(Path(__file__).parents[1]))
from free_ports import free_port  # noqa: E402


NUM_VALUES, NUM_IMAGES, SIDE = 11, 20, 3
LIMIT_SECONDS = 120
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


# The run


def token_dataset() -> TokenDataset:
    tokens = np.random.default_rng(0).integers(0, NUM_VALUES, (NUM_IMAGES, SIDE * SIDE), dtype=np.uint16)
    features = Features({"input_ids": List(Value("uint16"), length=SIDE * SIDE)})
    rows = Dataset.from_dict({"input_ids": tokens.tolist()}, features=features)
    return TokenDataset(rows, num_values=NUM_VALUES, grid=(SIDE, SIDE))


def run_config(**overrides) -> ImageGPTConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return ImageGPTConfig(vocab_size=NUM_VALUES + 1, image_size=SIDE, **sizes, **overrides)


def random_model(dropout: float = 0.2) -> ImageGPTForCausalImageModeling:
    """A tiny model with every weight random, and with dropout, so that the random state matters."""
    torch.manual_seed(0)
    model = ImageGPTForCausalImageModeling(run_config(resid_pdrop=dropout))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model


def make_trainer(
    folder: str | Path, trainer_class: type[IGPTTrainer] = IGPTTrainer, dropout: float = 0.2, **arguments
) -> IGPTTrainer:
    """Two images a step (over all processes), so that an epoch has 10 steps; a checkpoint every second step."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    defaults = {
        "max_steps": 6,
        "save_steps": 2,
        "per_device_train_batch_size": 2 // processes,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 1,
    }
    return trainer_class(
        random_model(dropout),
        TrainingArguments(str(folder), **(defaults | arguments)),
        train_dataset=token_dataset(),
        eval_dataset=token_dataset(),
        data_collator=TokenCollator(NUM_VALUES, SIDE * SIDE),
    )


class NativeTrainer(Trainer):
    """transformers' own, resumed in its own way."""

    def newest_checkpoint(self) -> str | None:
        # The first process makes the folder, and the others may be here before.
        return get_last_checkpoint(self.args.output_dir) if os.path.isdir(self.args.output_dir) else None


TRAINERS = {"ours": IGPTTrainer, "native": NativeTrainer}


class RecordingTrainer(IGPTTrainer):
    """Notes which images this process saw: [step, image, image, ...] of each step."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        rows = [example["input_ids"].tolist() for example in self.train_dataset]
        images = [rows.index(labels.tolist()) for labels in inputs["labels"]]
        self.images = [*getattr(self, "images", []), [self.state.global_step + 1, *images]]
        return super().compute_loss(model, inputs, *args, **kwargs)


def outcome(trainer: IGPTTrainer) -> dict:
    losses = [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry]
    result = {"weights": weights_digest(trainer.model), "losses": losses}
    return result | {"images": trainer.images} if isinstance(trainer, RecordingTrainer) else result


def train(
    folder: str | Path,
    crash: "CrashPoint | None" = None,
    at_step: int = 4,
    fsdp: dict[str, str] | None = None,
    **arguments,
) -> dict:
    """Starts the run, or continues it, and tells how it ended. `fsdp` is what a launcher says of FSDP."""
    torch.set_num_threads(1)
    if fsdp is not None:
        shard_on_cpu(fsdp)
    trainer = make_trainer(folder, **arguments)
    if "WORLD_SIZE" in os.environ:
        assert torch.distributed.get_world_size() == int(os.environ["WORLD_SIZE"]) == trainer.args.world_size
    assert trainer.is_fsdp_enabled == (fsdp is not None)
    if crash is not None:
        crash.watch(trainer, at_step)
    trainer.train(resume_from_checkpoint=trainer.newest_checkpoint())
    assert is_sharded(trainer.model) == (fsdp is not None)
    return outcome(trainer) | {"points": crash.seen if crash else []}


# Children


def _child(function: Callable[[], dict], answer: int, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    os.dup2(2, 1)
    try:
        os.write(answer, json.dumps(function()).encode())
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def in_children(
    *functions: Callable[[], dict],
    limit: float = LIMIT_SECONDS,
    kill_after: float | None = None,
    kill_with: int = signal.SIGKILL,
    kill_rank: int = 0,
    kill_with_first_end: bool = False,
) -> list:
    """Runs each function in a child of its own, ranks of one process group if there are several.

    Returns (exit status, result or None) of each; the status is minus the signal for a killed child and "hung" for one
    that had to be ended at the limit. `kill_after` sends one child a signal after so many seconds. With
    `kill_with_first_end` the others are killed a second after one has ended, as launchers do.
    """
    port = str(free_port())
    sys.stdout.flush()
    # Trainer collects garbage at its start, which in a child would touch and copy every page it inherited.
    gc.freeze()
    children = []
    for rank, function in enumerate(functions):
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(functions), "MASTER_ADDR": "127.0.0.1"}
        environment = {name: str(value) for name, value in group.items()} | {"MASTER_PORT": port}
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.setpgid(0, 0)
            _child(function, writer, environment if len(functions) > 1 else {})
        os.close(writer)
        children.append((child, reader))
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(children[kill_rank][0], kill_with)
    ends = time.monotonic() + limit
    if kill_with_first_end:
        _kill_with_first_end([child for child, _ in children], ends)
    return [_wait(child, reader, ends) for child, reader in children]


def _kill_with_first_end(children: list[int], ends: float) -> None:
    while time.monotonic() < ends:
        for child in children:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                time.sleep(1)
                for other in children:
                    os.kill(other, signal.SIGKILL)
                return
        time.sleep(0.05)


def _wait(child: int, reader: int, ends: float) -> tuple[int | str, dict | None]:
    hung = False
    while (waited := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > ends:
            hung = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    # A killed child leaves its workers, which hold the pipe open too: there is no end of it to wait for.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.set_blocking(reader, False)
    with open(reader, "rb", buffering=0) as answer:
        text = answer.read() or b""
    return "hung" if hung else os.waitstatus_to_exitcode(waited[1]), json.loads(text) if text else None


def start_in_children(folder: str, processes: int = 1, starts: list[dict] | None = None, record: bool = False) -> list:
    """Starts a run once for each entry of `starts` (its arguments); what every process of every start returned."""
    recording = {"trainer_class": RecordingTrainer} if record else {}
    return [
        in_children(*[functools.partial(train, folder, **recording, **start)] * processes) for start in starts or [{}]
    ]


# A kill at the n-th file operation of a save


class CrashPoint:
    """Counts the file operations below a folder during one save, and kills this process at number `at`.

    Python's own operations raise audit events. torch.save and safetensors write from native code: a point lies before
    and after each call. `cut` first halves the file that was just written, at the points where there is one.
    """

    def __init__(self, folder: str | Path, at: int | None = None, cut: bool = False):
        self.folder, self.at, self.cut = os.path.abspath(folder), at, cut
        self.active = False
        self.seen: list[list] = []

    def watch(self, trainer: IGPTTrainer, at_step: int) -> None:
        sys.addaudithook(self._on_event)
        self._wrap(torch, "save", 1)
        self._wrap(transformers.modeling_utils, "safe_save_file", 1)
        self._wrap(storage, "_exchange", 0)
        fsync, save = os.fsync, trainer._save_checkpoint

        def watched_fsync(descriptor: int) -> None:
            self._point("fsync", os.readlink(f"/proc/self/fd/{descriptor}"), written=True)
            fsync(descriptor)

        def watched_save(*args) -> None:
            self.active = trainer.state.global_step == at_step
            save(*args)
            self.active = False

        os.fsync, trainer._save_checkpoint = watched_fsync, watched_save

    def _wrap(self, module, name: str, path_argument: int) -> None:
        function = getattr(module, name)

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            self._point(f"before {name}", str(args[path_argument]))
            result = function(*args, **kwargs)
            self._point(f"after {name}", str(args[path_argument]), written=True)
            return result

        setattr(module, name, wrapped)

    def _on_event(self, event: str, args: tuple) -> None:
        if self.active and event in FILE_EVENTS and isinstance(args[0], (str, bytes, os.PathLike)):
            path = os.fsdecode(args[0])
            descriptor = args[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
            if descriptor != -1:
                path = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), path)
            self._point(event, path)

    def _point(self, label: str, path: str, written: bool = False) -> None:
        if not self.active or not os.path.abspath(path).startswith(self.folder):
            return
        is_file = written and os.path.isfile(path)
        self.seen.append([label, os.path.relpath(path, self.folder), is_file])
        if len(self.seen) - 1 == self.at:
            if self.cut and is_file:
                os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)


def run_processes(folder: Path, processes: int, rank: int = 0, crash: CrashPoint | None = None, **arguments) -> list:
    crashes = [crash if other == rank else None for other in range(processes)]
    return in_children(*[functools.partial(train, folder, each, **arguments) for each in crashes])


def crash_trial(folder: Path, at: int, cut: bool, reference: dict, processes: int, rank: int, **arguments) -> str:
    """Kills one save at one operation and resumes. "ok STEP" names the checkpoint that was resumed from."""
    crash = CrashPoint(folder, at, cut)
    ends = [status for status, _ in run_processes(folder, processes, rank, crash, **arguments)]
    if ends[rank] != -signal.SIGKILL or 0 in ends or "hung" in ends:
        return f"ended with {ends}"
    newest = _newest(folder)
    resumed = run_processes(folder, processes, **arguments)
    if any(status != 0 for status, _ in resumed):
        return f"resume ended with {[status for status, _ in resumed]}"
    return compare(folder, resumed[0][1], reference) or f"ok {newest}"


def _newest(folder: Path) -> str:
    """The checkpoint to resume from; of transformers' own Trainer the highest, whatever it holds."""
    try:
        return newest_complete_checkpoint(folder).name
    except DamagedFolderError:
        return list_checkpoints(folder)[-1][1].name


def compare(folder: Path, result: dict, reference: dict) -> str | None:
    if result["weights"] != reference["weights"]:
        return "other weights"
    if result["losses"] != reference["losses"]:
        return "other losses"
    if left := [path.name for path in folder.iterdir() if path.name.startswith((".partial", ".removed", ".old"))]:
        return f"left {left}"
    return None


def crash_points(
    folder: str, processes=1, rank=0, sample: int | None = None, seed=0, trainer: str = "ours", **arguments
) -> dict:
    """Every file operation of the save at step 4, or a seeded sample of them; each in both variants that differ."""
    base = Path(folder)
    arguments |= {"trainer_class": TRAINERS[trainer]}
    counted = run_processes(base / "count", processes, rank, CrashPoint(base / "count"), **arguments)
    reference = counted[0][1]
    points = counted[rank][1]["points"]
    trials = [(at, cut) for at, point in enumerate(points) for cut in ([False, True] if point[2] else [False])]
    if sample is not None:
        trials = sorted(random.Random(seed).sample(trials, min(sample, len(trials))))
    outcomes = []
    for at, cut in trials:
        run = base / f"trial-{at}-{cut}"
        result = crash_trial(run, at, cut, reference, processes, rank, **arguments)
        outcomes.append({"at": at, "cut": cut, "operation": points[at][:2], "outcome": result})
        shutil.rmtree(run)
    return {"operations": len(points), "trials": outcomes}


def random_kills(
    folder: str, trials: int = 3, kills: int = 2, processes: int = 1, seed: int = 0, trainer: str = "ours", **arguments
):
    """Kills a process of runs at random moments, up to `kills` times each, and lets each end.

    A moment after the end kills nothing and isn't listed in "newest_at_kill".
    """
    arguments = {"max_steps": 30, "save_steps": 2, "save_total_limit": 2} | arguments
    arguments |= {"trainer_class": TRAINERS[trainer]}
    base, generator = Path(folder), random.Random(seed)
    started = time.monotonic()
    reference = run_processes(base / "reference", processes, **arguments)[0][1]
    duration = time.monotonic() - started
    outcomes = []
    for trial in range(trials):
        run, newest_at_kill = base / f"trial-{trial}", []
        start = functools.partial(train, run, **arguments)
        for _ in range(kills):
            # Two draws, the smaller one: a run that is resumed has less left than the whole.
            moment = duration * min(generator.random(), generator.random())
            rank = generator.randrange(processes)
            ends = in_children(*[start] * processes, kill_after=moment, kill_rank=rank, kill_with_first_end=True)
            if ends[rank][0] == -signal.SIGKILL:
                newest_at_kill.append(max((step for step, _ in list_checkpoints(run)), default=0))
        ends = run_processes(run, processes, **arguments)
        statuses = [status for status, _ in ends]
        problem = f"ended with {statuses}" if any(statuses) else compare(run, ends[0][1], reference)
        outcomes.append({"newest_at_kill": newest_at_kill, "outcome": problem or "ok"})
        shutil.rmtree(run)
    return {"trials": outcomes}


def repeated_saves(folder: str, processes: int = 2, saves: int = 25, **arguments):
    """A fault-free run of several processes with a save at every step."""
    arguments = {"max_steps": saves, "save_steps": 1} | arguments
    results = run_processes(Path(folder), processes, **arguments)
    complete = [storage.is_complete(path) for _, path in list_checkpoints(folder)]
    statuses = [status for status, _ in results]
    good = sum(complete) if set(statuses) == {0} else 0
    return {"trials": [{"outcome": "ok"}] * good + [{"outcome": f"ended with {statuses}"}] * (saves - good)}


# Faults inside a step


class FaultyTrainer(IGPTTrainer):
    """Spoils one step on one process.

    "nan" spoils the loss and with it every gradient, "constant" the loss alone, "gradient" one gradient alone.
    """

    fault, step, rank = "nan", 4, 0

    def _due(self) -> bool:
        return self.state.global_step + 1 == self.step and self.args.process_index == self.rank

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss = super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        if not self._due() or return_outputs:
            return loss
        if self.fault == "gradient":
            weight = self.model.lm_head.weight
            self.hook = weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), torch.inf))
        return {"nan": loss * torch.nan, "constant": loss + torch.inf, "gradient": loss}[self.fault]


def faulty_step(folder: str, processes: int = 1, fault: str = "nan", rank: int = 0, **arguments):
    """What each process raised, and what is left of the run."""

    def start() -> dict:
        torch.set_num_threads(1)
        trainer_class = type("Faulty", (FaultyTrainer,), {"fault": fault, "rank": rank})
        trainer = make_trainer(folder, trainer_class, **arguments)
        assert trainer.args.world_size == processes
        before: dict[str, str] = {}
        _note_weights(trainer, before)
        try:
            trainer.train()
        except RuntimeError as error:
            logged = [entry for entry in trainer.state.log_history if "loss" in entry]
            result = {"error": type(error).__name__, "message": str(error), "logged": logged}
            return result | {"unchanged": weights_digest(trainer.model) == before["after_last_step"]}
        return {"error": None}

    results = in_children(*[start] * processes)
    return {"results": results, "checkpoints": [step for step, _ in list_checkpoints(folder)]}


def _note_weights(trainer: IGPTTrainer, weights: dict[str, str]) -> None:
    """Notes the weights after each step, to tell whether the spoilt one was applied."""
    on_step_end = trainer.callback_handler.on_step_end

    def noting(*args):
        weights["after_last_step"] = weights_digest(trainer.model)
        return on_step_end(*args)

    trainer.callback_handler.on_step_end = noting


def full_disk(folder: str, bytes_left: int, at_step: int = 4) -> dict:
    """A run whose save at a step can't make any file longer than `bytes_left`, then the same run with room again."""

    def start() -> dict:
        torch.set_num_threads(1)
        trainer = make_trainer(folder)
        save = trainer._save_checkpoint

        def limited_save(*args) -> None:
            limit = bytes_left if trainer.state.global_step == at_step else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            save(*args)

        trainer._save_checkpoint = limited_save
        trainer.train()
        return {}

    status = in_children(start)[0][0]
    left = sorted(path.name for path in Path(folder).iterdir())
    return {"status": status, "left": left, "resumed": start_in_children(folder)[0][0]}


def refusal(folder: str, **arguments) -> dict:
    """What a start says that is refused with a ValueError."""

    def start() -> dict:
        try:
            train(folder, **arguments)
        except ValueError as error:
            return {"message": str(error)}
        return {"message": ""}

    return in_children(start)[0][1]


COMMANDS = {
    "refusal": refusal,
    "start_in_children": start_in_children,
    "full_disk": full_disk,
    "crash_points": crash_points,
    "random_kills": random_kills,
    "repeated_saves": repeated_saves,
    "faulty_step": faulty_step,
}

if __name__ == "__main__":
    import fault_trials

    COMMANDS |= fault_trials.COMMANDS
    for line in sys.stdin:
        name, where, given = json.loads(line)
        print(json.dumps(COMMANDS[name](where, **given)), flush=True)
