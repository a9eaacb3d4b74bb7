"""Kills, damages, fills disks and stops processes far more often than the tests do, and writes a JSON of it.

    OMP_NUM_THREADS=1 python benchmarks/fault_injection.py --output outputs/fault-injection.json

Needs Linux, a checkout (the trials are those of tests/training) and the `train` extra.
Finished parts are kept beside the output: interrupted, the command goes on.

Every trial is a tiny run, and ends in words: "ok CHECKPOINT" (resumed from it, weights bit for bit and losses equal to
the undisturbed run), "ok", "found" (damage), "stopped" (a bad number), or what went wrong. The same is done to
transformers' own Trainer, resumed with its own `get_last_checkpoint`. The exit status is 1 if any of ours went wrong.
"""

import argparse
import contextlib
import json
import queue
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_igpt.results import git_commit, print_results, write_results
from hf_igpt.storage import read_json, write_json


TESTS = Path(__file__).parents[1] / "tests"
HARNESS = TESTS / "training" / "fault_harness.py"
sys.path.append(str(TESTS))
from line_process import line_process  # noqa: E402


GOOD = ("ok", "found", "stopped")
OURS, TRAINER = "ours", "Trainer"


@dataclass(frozen=True)
class Part:
    """One call of the harness: a row of the table, whose trials they are, and what to call."""

    row: str
    whose: str
    command: str
    arguments: dict[str, Any]

    @property
    def key(self) -> str:
        """What tells it from the others."""
        return json.dumps([self.row, self.whose, self.command, self.arguments])


class Parts:
    """All calls, in the table's order: `trials` of each kind that is drawn."""

    def __init__(self, trials: int, seed: int):
        self.trials, self.seed, self.found = trials, seed, list[Part]()
        self._saves()
        self._moments()
        self._steps_and_processes()
        self._data()

    def _add(self, row: str, whose: str, command: str, **arguments: Any) -> None:
        self.found.append(Part(row, whose, command, arguments))

    def _saves(self) -> None:
        row, limit = "kill at every file operation of a save", {"save_total_limit": 1}
        self._add(f"{row}, 1 process", OURS, "crash_points", **limit)
        self._add(f"{row}, 1 process", TRAINER, "crash_points", trainer="native", **limit)
        for rank in (0, 1):
            self._add(f"{row}, process {rank} of 2", OURS, "crash_points", processes=2, rank=rank, **limit)
        self._add("saves of 2 processes without a fault", OURS, "repeated_saves", saves=25)
        row = "disk full from a write of a save on"
        self._add(f"{row}, 1 process", OURS, "full_disk_points")
        self._add(f"{row}, 1 process", TRAINER, "full_disk_points", trainer="native")
        self._add(f"{row}, for one of 2", OURS, "full_disk_points", processes=2, every=6)

    def _moments(self) -> None:
        fifth = self.trials // 5
        row = "runs killed 1 to 5 times, at random moments of training"
        for kills in range(1, 6):
            drawn = {"trials": fifth, "kills": kills, "seed": self.seed + kills}
            self._add(f"{row}, 1 process", OURS, "random_kills", **drawn)
            self._add(f"{row}, one of 2", OURS, "random_kills", processes=2, **drawn)
            self._add(f"{row}, 1 process", TRAINER, "random_kills", trainer="native", **drawn | {"trials": fifth // 5})
        row = "SIGTERM or Ctrl-C at a random moment"
        for part in range(4):
            self._add(f"{row}, 1 process", OURS, "signal_trials", trials=fifth, seed=self.seed + part)
        self._add(f"{row}, 1 process", TRAINER, "signal_trials", trials=fifth, trainer="native")
        self._add(f"{row}, to one of 2", OURS, "signal_trials", trials=fifth, processes=2, seed=self.seed)

    def _steps_and_processes(self) -> None:
        row = "loss or gradient of a step not finite"
        for fault in ("nan", "constant", "gradient"):
            self._add(f"{row}, 1 process", OURS, "stopped_step", fault=fault)
            self._add(f"{row}, 1 process", TRAINER, "native_faulty_step", fault=fault)
            for rank in (0, 1):
                self._add(f"{row}, on one of 2", OURS, "stopped_step", fault=fault, processes=2, rank=rank)
        for fault in ("dies", "raises", "hangs"):
            row = f"one of 2 processes {fault}: the other ends in time"
            for rank in (0, 1):
                self._add(row, OURS, "lost_process", fault=fault, rank=rank)
            self._add(row, TRAINER, "lost_process", fault=fault, trainer="native")

    def _data(self) -> None:
        fifth = self.trials // 5
        stages = {"palette": "palette fitting", "tokens": "tokenization", "features": "feature extraction"}
        for stage, name in stages.items():
            row = f"kill at a random moment of {name}"
            self._add(f"{row}, 1 process", OURS, "killed_stage", stage=stage, trials=self.trials, seed=self.seed)
            for part in range(5):
                drawn = {"stage": stage, "trials": fifth, "seed": self.seed + part}
                self._add(f"{row}, one of 2", OURS, "killed_stage", processes=2, **drawn)
        row, tokens = "kill at a random moment of tokenization, 1 process with 4 workers", {"stage": "tokens"}
        self._add(row, OURS, "killed_stage", trials=fifth, num_proc=4, seed=self.seed, **tokens)
        row = "two processes make the same tokens at once"
        self._add(row, OURS, "stage_made_twice", trials=self.trials // 10, seed=self.seed, **tokens)
        kinds = {"checkpoint": "a checkpoint", "tokens": "a tokenized data set", "features": "a feature cache"}
        for kind, name in kinds.items():
            row = f"one byte flipped or a file cut in {name}"
            self._add(row, OURS, f"damaged_{kind}", trials=3 * self.trials, seed=self.seed)
            if kind == "checkpoint":
                self._add(row, TRAINER, "damaged_native_checkpoint", trials=self.trials, seed=self.seed)


def run_parts(waiting: list[Part], jobs: int, folder: Path, finish) -> None:
    """
    Runs the parts in so many harnesses; `finish` takes each part with its answer. Raises the first error, once the
    other harnesses have done what they can.
    """
    todo: queue.SimpleQueue[Part] = queue.SimpleQueue()
    for part in waiting:
        todo.put(part)

    def work(number: int) -> None:
        with line_process(HARNESS, folder / f"stderr-{number}") as ask, contextlib.suppress(queue.Empty):
            while True:
                part = todo.get_nowait()
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    finish(part, ask(part.command, place, part.arguments))

    count = min(jobs, len(waiting))
    with ThreadPoolExecutor(max(count, 1)) as pool:
        harnesses = [pool.submit(work, number) for number in range(count)]
    for done in harnesses:
        done.result()


def in_words(trial: dict[str, Any]) -> str:
    """A trial on one line."""
    where = [str(value) for name, value in trial.items() if name != "outcome"]
    return f"{' '.join(where)}: {trial['outcome']}" if where else trial["outcome"]


def main() -> int:
    """Runs what isn't finished and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/fault-injection.json", help="JSON file to write")
    parser.add_argument("--trials", type=int, default=100, help="of each kind that is drawn; damages 3 times as many")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments, places and samples")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once")
    parser.add_argument(
        "--only", default="", help="only the rows with this text; they are kept, but nothing is written"
    )
    arguments = parser.parse_args()
    output, started = Path(arguments.output), time.perf_counter()
    kept = output.with_suffix(".parts.json")
    commit = git_commit()
    state = read_json(kept) if kept.is_file() else {}
    if state.get("commit") != commit:
        state = {"commit": commit, "seconds": 0.0, "answers": {}}
    every = Parts(arguments.trials, arguments.seed).found
    waiting = [part for part in every if part.key not in state["answers"] and arguments.only in part.row]
    lock, spent = threading.Lock(), state["seconds"]

    def finish(part: Part, answer: dict[str, Any]) -> None:
        with lock:
            state["answers"][part.key] = answer
            state["seconds"] = spent + time.perf_counter() - started
            write_json(kept, state)
            outcomes = Counter(trial["outcome"] for trial in answer["trials"])
            print(f"{part.row} ({part.whose}): {dict(outcomes)}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        run_parts(waiting, arguments.jobs, Path(folder), finish)
    if any(part.key not in state["answers"] for part in every):
        return 0
    rows: dict[str, dict[str, Any]] = {}
    trials: dict[str, list[str]] = {}
    for part in every:
        answer = state["answers"][part.key]
        cell = rows.setdefault(part.row, {}).setdefault(part.whose, {"trials": 0, "good": 0, "outcomes": {}})
        for trial in answer["trials"]:
            cell["trials"] += 1
            cell["good"] += trial["outcome"].startswith(GOOD)
            cell["outcomes"][trial["outcome"]] = cell["outcomes"].get(trial["outcome"], 0) + 1
            if "seconds" in trial:
                cell["longest_seconds"] = max(cell.get("longest_seconds", 0.0), trial["seconds"])
        trials.setdefault(f"{part.row} ({part.whose})", []).extend(map(in_words, answer["trials"]))
    results = write_results(
        output,
        metrics={"rows": rows},
        seeds={"seed": arguments.seed},
        arguments={"trials": arguments.trials, "jobs": arguments.jobs},
        wall_seconds=round(state["seconds"], 1),
        trials=trials,
    )
    kept.unlink()
    print_results({name: value for name, value in results.items() if name != "trials"})
    return int(any(cells[OURS]["good"] < cells[OURS]["trials"] for cells in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
