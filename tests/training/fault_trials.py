"""Faults beside those of `fault_harness`: signals, lost processes, full disks, damaged files, killed stages of data.

Where it says so, the same is done to transformers' own Trainer.
"""

import errno
import functools
import hashlib
import math
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import PartialState
from fault_harness import (
    TRAINERS,
    CrashPoint,
    NativeTrainer,
    compare,
    faulty_step,
    in_children,
    make_trainer,
    outcome,
    random_model,
    run_processes,
    token_dataset,
    train,
)

from hf_igpt.data.preparation import prepare_palette, prepare_tokens
from hf_igpt.data.sources import ImageSource
from hf_igpt.data.token_store import load_tokens
from hf_igpt.evaluation.feature_store import FeatureSettings, prepare_features
from hf_igpt.image_processing_igpt import IGPTImageProcessor
from hf_igpt.processes import process_state
from hf_igpt.storage import MANIFEST, DamagedFolderError, list_checkpoints, verify_folder
from hf_igpt.training import peers
from hf_igpt.training.errors import LostProcessError, TrainingInterrupted
from hf_igpt.training.trainer import IGPTTrainer


HANG_SECONDS = 4
SLACK_SECONDS = 20


def newest_step(folder: str | Path) -> int:
    return max((step for step, _ in list_checkpoints(folder)), default=0)


# Signals


def _train_until_signal(folder: str | Path, **arguments) -> dict:
    try:
        return train(folder, **arguments)
    except TrainingInterrupted as interrupted:
        return {"interrupted": interrupted.signal}


def signal_trials(folder: str, trials: int, processes: int = 1, trainer: str = "ours", seed: int = 0) -> dict:
    """SIGTERM and SIGINT to one process at a random moment, and the same command again."""
    arguments = {"max_steps": 30, "save_steps": 10, "trainer_class": TRAINERS[trainer]}
    base, generator, outcomes = Path(folder), random.Random(seed), []
    started = time.monotonic()
    reference = run_processes(base / "reference", processes, **arguments)[0][1]
    duration = time.monotonic() - started
    while len(outcomes) < trials:
        run = base / f"trial-{len(outcomes)}"
        number = generator.choice([signal.SIGTERM, signal.SIGINT])
        start = functools.partial(_train_until_signal, run, **arguments)
        moment, started = duration * generator.random(), time.monotonic()
        # A signal before the processes have met leaves one of them waiting for the other.
        limit = duration + SLACK_SECONDS
        ends = in_children(*[start] * processes, limit=limit, kill_after=moment, kill_with=number)
        seconds = time.monotonic() - started - moment
        if not _trained(run) or ends[0][0] == 0 and "weights" in ends[0][1]:
            # Before the first step, where the process just ends, or after the last one.
            shutil.rmtree(run, ignore_errors=True)
            continue
        result = _after_signal(run, ends, number, processes, reference, arguments)
        outcomes.append({"signal": number.name, "seconds": round(seconds, 2), "outcome": result})
        shutil.rmtree(run)
    return {"trials": outcomes}


def _trained(run: Path) -> bool:
    return newest_step(run) > 0


def _after_signal(run: Path, ends: list, number: int, processes: int, reference: dict, arguments: dict) -> str:
    stopped = all(status == 0 and result.get("interrupted") == number for status, result in ends)
    step = newest_step(run)
    again = run_processes(run, processes, **arguments)
    if any(status != 0 for status, _ in again):
        return f"resume ended with {[status for status, _ in again]}"
    if problem := compare(run, again[0][1], reference):
        return problem
    if stopped:
        return f"ok: stopped with step {step} saved"
    return "ok: its last step was saved" if step == arguments["max_steps"] else "died, its last steps lost"


# Processes that end, raise or stop answering


class _Faulty:
    """Does something to one process in front of step 4."""

    def training_step(self, *args, **kwargs):
        if self.state.global_step + 1 == 4 and self.args.process_index == self.rank:
            self.happen()
        return super().training_step(*args, **kwargs)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise() -> None:
    raise ValueError("image 3 is damaged")


def _stop_answering() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


LOSSES = {"dies": _die, "raises": _raise, "hangs": _stop_answering}


def lost_process(folder: str, fault: str, rank: int = 1, trainer: str = "ours", limit: float = HANG_SECONDS) -> dict:
    """One of two processes is lost. Tells how the other ended and after how many seconds, and how the run resumes."""
    base = Path(folder)
    members = {"rank": rank, "happen": staticmethod(LOSSES[fault])}
    spoilt = type("Spoilt", (_Faulty, TRAINERS[trainer]), members)

    def start() -> dict:
        peers.GRACE_SECONDS = 0
        started = time.monotonic()
        try:
            train(base / "run", trainer_class=spoilt, ddp_timeout=limit)
        except (LostProcessError, ValueError) as error:
            kind, message = type(error).__name__, str(error)
            return {"error": kind, "message": message, "seconds": time.monotonic() - started}
        return {"error": None}

    # A process that died ends the other one without a launcher's help.
    ends = in_children(start, start, limit=limit + SLACK_SECONDS, kill_with_first_end=fault != "dies")
    other_status, other = ends[1 - rank]
    answer = {"statuses": [status for status, _ in ends], "newest": newest_step(base / "run"), "other": other}
    if other_status == "hung":
        return _one_trial(answer | {"outcome": f"still waiting {SLACK_SECONDS} seconds after the limit of {limit}"})
    assert answer["newest"] == 2, f"the trial was lost before its fault: {ends}"
    reference = run_processes(base / "reference", 2, trainer_class=TRAINERS[trainer])[0][1]
    again = run_processes(base / "run", 2, trainer_class=TRAINERS[trainer])
    if any(status != 0 for status, _ in again):
        return _one_trial(answer | {"outcome": f"resume ended with {[status for status, _ in again]}"})
    problem = compare(base / "run", again[0][1], reference)
    # Trainer's processes end with an error of the library.
    named = trainer == "native" or (other or {}).get("error") == "LostProcessError"
    answer["outcome"] = problem or ("ok" if named else f"ended with {other_status}, {other}")
    return _one_trial(answer)


def _one_trial(answer: dict) -> dict:
    seconds = (answer["other"] or {}).get("seconds")
    timed = {} if seconds is None else {"seconds": round(seconds, 1)}
    return answer | {"trials": [timed | {"outcome": answer["outcome"]}]}


# A full disk


class FullDisk(CrashPoint):
    """From file operation `at` of the save on, whatever takes space fails."""

    def _on_event(self, event: str, args: tuple) -> None:
        if event == "open" and not (
            any(letter in args[1] for letter in "wax+")
            if isinstance(args[1], str)
            else args[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            return
        if event in ("open", "os.mkdir"):
            super()._on_event(event, args)

    def _point(self, label: str, path: str, written: bool = False) -> None:
        before = len(self.seen)
        if label.startswith("after") or "_exchange" in label:
            return
        super()._point(label, path)
        if len(self.seen) > before and self.limit is not None and len(self.seen) > self.limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    limit: int | None = None


def full_disk_points(folder: str, processes: int = 1, trainer: str = "ours", every: int = 1) -> dict:
    """The disk is full from each write of the save at step 4 on; then there is room again, and the same command."""
    base, arguments = Path(folder), {"save_total_limit": 1, "trainer_class": TRAINERS[trainer]}
    counted = run_processes(base / "count", processes, crash=FullDisk(base / "count"), **arguments)
    reference, writes = counted[0][1], counted[0][1]["points"]
    outcomes = []
    for at in range(0, len(writes), every):
        run = base / f"trial-{at}"
        disk = FullDisk(run)
        disk.limit = at
        ends = [status for status, _ in run_processes(run, processes, crash=disk, **arguments)]
        result = "goes on without room" if 0 in ends else f"ended with {ends}" if "hung" in ends else None
        again = run_processes(run, processes, **arguments)
        if any(status != 0 for status, _ in again):
            result = result or f"resume ended with {[status for status, _ in again]}"
        else:
            result = result or compare(run, again[0][1], reference) or "ok"
        outcomes.append({"at": at, "operation": writes[at][:2], "outcome": result})
        shutil.rmtree(run)
    return {"writes": len(writes), "trials": outcomes}


# Numbers that aren't finite, under Trainer


def native_faulty_step(folder: str, fault: str) -> dict:
    """What Trainer makes of a step whose loss or gradient isn't finite."""

    class Spoilt(NativeTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss = super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
            if self.state.global_step + 1 != 4:
                return loss
            if fault == "gradient":
                model.lm_head.weight.register_hook(lambda grad: grad.index_fill(0, torch.tensor([0]), torch.inf))
            return {"nan": loss * math.nan, "constant": loss + math.inf, "gradient": loss}[fault]

    def start() -> dict:
        torch.set_num_threads(1)
        trainer = make_trainer(folder, Spoilt)
        trainer.train()
        finite = all(weight.isfinite().all() for weight in trainer.model.parameters())
        return {"finite": bool(finite), "losses": outcome(trainer)["losses"]}

    status, result = in_children(start)[0]
    if status != 0:
        return {"trials": [{"outcome": "stopped"}]}
    zeros = sum(loss == 0 for _, loss in result["losses"])
    weights = "finite weights" if result["finite"] else "weights that are not finite"
    return {"trials": [{"outcome": f"goes on to {weights}, {zeros} losses logged as 0, exit code 0"}]}


def stopped_step(folder: str, fault: str, processes: int = 1, rank: int = 0) -> dict:
    """Whether every process of ours stops before such a step is applied, the last checkpoint kept."""
    answer = faulty_step(folder, processes=processes, fault=fault, rank=rank)
    good = answer["checkpoints"] == [2] and all(
        status == 0 and result["error"] == "NonFiniteTrainingError" and result["unchanged"]
        for status, result in answer["results"]
    )
    return {"trials": [{"fault": fault, "outcome": "stopped" if good else f"ended with {answer}"}]}


# Damaged files


def damages(files: list[Path], trials: int, seed: int) -> Iterator[tuple[dict, Path]]:
    """Flips one byte or cuts one file at a seeded place, and mends it afterwards."""
    generator = random.Random(seed)
    files = [path for path in files if path.stat().st_size]
    for trial in range(trials):
        path = files[trial % len(files)]
        original = path.read_bytes()
        at, is_flip = generator.randrange(len(original)), trial // len(files) % 2 == 0
        flipped = bytes([original[at] ^ generator.randrange(1, 256)]) + original[at + 1 :]
        path.write_bytes(original[:at] + (flipped if is_flip else b""))
        yield {"file": path.name, "at": at, "damage": "flip" if is_flip else "cut"}, path
        path.write_bytes(original)


def damaged(files: list[Path], check: Callable[[], object], trials: int, seed: int) -> dict:
    """Whether each damage is an error that names the file."""

    def try_all() -> dict:
        outcomes = []
        for damage, path in damages(files, trials, seed):
            try:
                check()
                found = "not found"
            except ValueError as error:
                is_named = path.name in (*re.split(r"[/\s]", str(error)), MANIFEST)
                found = "found" if is_named else f"found, but called {error}"
            outcomes.append(damage | {"outcome": found})
        return {"trials": outcomes}

    # In a child: reading starts threads, and a process with threads had better not fork.
    return in_children(try_all)[0][1]


def damaged_checkpoint(folder: str, trials: int, seed: int = 0) -> dict:
    in_children(functools.partial(train, folder, max_steps=2))
    checkpoint = list_checkpoints(folder)[0][1]
    return damaged(sorted(checkpoint.iterdir()), lambda: verify_folder(checkpoint), trials, seed)


def damaged_native_checkpoint(folder: str, trials: int, seed: int = 0) -> dict:
    """Whether Trainer, resumed from a damaged checkpoint, says so."""
    base = Path(folder)
    in_children(functools.partial(train, base / "whole", trainer_class=NativeTrainer, max_steps=6))
    shutil.rmtree(base / "whole" / "checkpoint-6")
    newest = base / "whole" / "checkpoint-4"
    files = [path for path in sorted(newest.iterdir()) if not path.name.endswith("_igpt.py")]
    outcomes = []
    for damage, _ in damages(files, trials, seed):
        run = Path(shutil.copytree(base / "whole", base / "run"))
        status, _ = in_children(functools.partial(train, run, trainer_class=NativeTrainer, max_steps=6))[0]
        outcomes.append(damage | {"outcome": "found" if status else "not found"})
        shutil.rmtree(run)
    return {"trials": outcomes}


def damaged_tokens(folder: str, trials: int, seed: int = 0) -> dict:
    tokens = Path(folder) / "tokens"
    in_children(functools.partial(_make_tokens, Path(folder)))
    files = [path for path in sorted(tokens.rglob("*")) if path.is_file()]
    return damaged(files, lambda: load_tokens(tokens), trials, seed)


def damaged_features(folder: str, trials: int, seed: int = 0) -> dict:
    in_children(functools.partial(_make_features, Path(folder)))
    (features,) = (Path(folder) / "features").iterdir()
    return damaged(sorted(features.iterdir()), lambda: verify_folder(features), trials, seed)


# Stages of data


SIZE = {"height": 8, "width": 8}


def _images(count: int = 48) -> ImageSource:
    # Few colours, for k-means takes its time with many.
    pixels = 80 * np.random.default_rng(0).integers(0, 4, (count, *SIZE.values(), 3)).astype(np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": list(pixels), "label": [row % 2 for row in range(count)]}
    return ImageSource("random", {"train": datasets.Dataset.from_dict(rows, features=features)}, "image", "label")


def _make_palette(folder: Path) -> dict:
    prepare_palette(folder / "palette", _images(), num_colors=8, size=SIZE)
    return {}


def _make_tokens(folder: Path, num_proc: int | None = None) -> dict:
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    processor = IGPTImageProcessor(size=SIZE, palette=np.random.default_rng(1).uniform(0, 255, (8, 3)))
    prepare_tokens(folder / "tokens", _images(), processor, num_proc=num_proc)
    return {}


def _make_features(folder: Path) -> dict:
    torch.set_num_threads(1)
    rows = token_dataset().tokens
    tokens = datasets.concatenate_datasets([rows] * 10)
    settings = FeatureSettings(token_hash="p")
    prepare_features(folder / "features", random_model(), "abc", tokens, "test", settings, PartialState(cpu=True))
    return {}


STAGES = {"palette": _make_palette, "tokens": _make_tokens, "features": _make_features}
# What tells when and how fast, and the manifest over it.
TIMED = ("results.json", "manifest.json")


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in TIMED]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _make_stage(folder: Path, stage: str, **options) -> dict:
    assert process_state().num_processes == int(os.environ.get("WORLD_SIZE", "1"))
    return STAGES[stage](folder, **options)


def killed_stage(
    folder: str, stage: str, trials: int, num_proc: int | None = None, processes: int = 1, seed: int = 0
) -> dict:
    """Kills a process at random moments of a stage of data, and the same again, against an undisturbed stage."""
    base, generator, outcomes = Path(folder), random.Random(seed), []
    options = {"num_proc": num_proc} if num_proc else {}

    def make(run: Path, **kill) -> list[int | str]:
        ends = in_children(*[functools.partial(_make_stage, run, stage, **options)] * processes, **kill)
        return [status for status, _ in ends]

    started = time.monotonic()
    assert set(make(base / "reference")) == {0}
    duration = time.monotonic() - started
    reference = _digests(base / "reference" / stage)
    misses = 0
    while len(outcomes) < trials:
        run = base / f"trial-{len(outcomes)}"
        moment, rank = duration * generator.random(), generator.randrange(processes)
        status = make(run, kill_after=moment, kill_rank=rank, kill_with_first_end=True)[rank]
        if status == 0:
            shutil.rmtree(run)
            # The machine is faster than it was: moments past the end kill nothing.
            misses += 1
            duration *= 0.95
            continue
        killed = {"share_of_time": round(moment / duration, 3)} | ({"rank": rank} if processes > 1 else {})
        was_killed = status == -signal.SIGKILL
        result = _after_kill(run, stage, make, reference) if was_killed else f"not killed, but ended with {status}"
        outcomes.append(killed | {"outcome": result})
        shutil.rmtree(run, ignore_errors=True)
    return {"trials": outcomes, "moments_after_the_end": misses}


def _after_kill(run: Path, stage: str, make: Callable[[Path], list], reference: dict) -> str:
    finished = [path for path in _stage_folders(run, stage) if not path.name.startswith(".")]
    try:
        for path in finished:
            verify_folder(path)
    except DamagedFolderError as error:
        return f"partial: {error}"
    if set(statuses := make(run)) != {0}:
        return f"again ended with {statuses}"
    if _digests(run / stage) != reference:
        return "other bytes"
    hidden = [path.name for path in [*run.iterdir(), *_stage_folders(run, stage)] if path.name.startswith(".")]
    hidden += [path.name for path in run.glob("cache/**/tmp*")]
    return f"left {hidden}" if hidden else "ok"


def _stage_folders(run: Path, stage: str) -> list[Path]:
    if stage == "features":
        return list((run / stage).iterdir()) if (run / stage).is_dir() else []
    return [run / stage] if (run / stage).is_dir() else []


def second_start(folder: str) -> dict:
    """What a run says that is started where another one trains, and how the first one ends."""
    base = Path(folder)

    class Holding(IGPTTrainer):
        def training_step(self, *args, **kwargs):
            (base / "held").touch()
            _wait_for(base / "release")
            return super().training_step(*args, **kwargs)

    def first() -> dict:
        _alone()
        return train(base / "run", trainer_class=Holding)

    def second() -> dict:
        _alone()
        _wait_for(base / "held")
        trainer = make_trainer(base / "run")
        try:
            trainer.train()
        except ValueError as error:
            return {"message": str(error)}
        finally:
            (base / "release").touch()
        return {"message": ""}

    return {"ends": in_children(first, second), "newest": newest_step(base / "run")}


def _alone() -> None:
    """Makes a run of its own of a child that was started as one of a group."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name)


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.02)


def spoilt_evaluation(folder: str, processes: int = 2) -> dict:
    """What an evaluation says on every process where the logits of one batch of the last one are NaN."""

    def start() -> dict:
        torch.set_num_threads(1)
        trainer = make_trainer(folder, per_device_eval_batch_size=2)
        calls = []

        def spoil(module, inputs, output):
            calls.append(1)
            return output * math.nan if len(calls) == 2 and trainer.args.process_index == processes - 1 else output

        trainer.model.lm_head.register_forward_hook(spoil)
        try:
            return {"loss": trainer.evaluate()["eval_loss"]}
        except ValueError as error:
            return {"message": str(error)}

    return {"results": in_children(*[start] * processes)}


def stage_made_twice(folder: str, stage: str, trials: int = 1, seed: int = 0) -> dict:
    """Two processes make the same at once, the second a random moment after the first."""
    base, generator, outcomes = Path(folder), random.Random(seed), []
    assert in_children(functools.partial(STAGES[stage], base / "reference"))[0][0] == 0
    reference = _digests(base / "reference" / stage)
    for trial in range(trials):
        run, delay = base / f"trial-{trial}", generator.random()

        def start(wait: float, run: Path = run) -> dict:
            _alone()
            time.sleep(wait)
            STAGES[stage](run)
            return _digests(run / stage)

        ends = in_children(functools.partial(start, 0.0), functools.partial(start, delay))
        hidden = [path.name for path in run.iterdir() if path.name.startswith(".")]
        same = [end == (0, reference) for end in ends]
        result = "ok" if all(same) and not hidden else f"ended with {[status for status, _ in ends]}, left {hidden}"
        outcomes.append({"delay": round(delay, 3), "outcome": result})
    return {"trials": outcomes}


COMMANDS = {
    "damaged_checkpoint": damaged_checkpoint,
    "damaged_features": damaged_features,
    "damaged_native_checkpoint": damaged_native_checkpoint,
    "damaged_tokens": damaged_tokens,
    "full_disk_points": full_disk_points,
    "killed_stage": killed_stage,
    "lost_process": lost_process,
    "native_faulty_step": native_faulty_step,
    "second_start": second_start,
    "signal_trials": signal_trials,
    "spoilt_evaluation": spoilt_evaluation,
    "stage_made_twice": stage_made_twice,
    "stopped_step": stopped_step,
}
