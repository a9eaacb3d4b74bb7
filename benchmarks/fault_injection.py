"""Kills and damages tiny training runs far more often than the tests do, and writes what came of it as JSON.

    OMP_NUM_THREADS=1 python benchmarks/fault_injection.py --output outputs/fault_injection.json

Needs Linux, a checkout (the trials are those of tests/training) and the `train` extra; about four minutes on 2 cores.
Every trial ends in "ok CHECKPOINT" (resumed from it, weights bit for bit and losses equal to the uninterrupted run),
"ok", "found" (damage), or says what went wrong. The exit status is 1 if any went wrong.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "training"))

import fault_harness  # noqa: E402

from hf_igpt.results import print_results, write_results  # noqa: E402
from hf_igpt.storage import DamagedFolderError, list_checkpoints, verify_folder  # noqa: E402


def damaged_files(folder: Path, trials: int, seed: int) -> dict:
    """Flips one byte or cuts one file of a checkpoint at a seeded place."""
    fault_harness.start_in_children(str(folder), starts=[{"max_steps": 2}])
    checkpoint = list_checkpoints(folder)[0][1]
    files = sorted(path for path in checkpoint.iterdir())
    generator, outcomes = random.Random(seed), []
    for trial in range(trials):
        path = files[trial % len(files)]
        original = path.read_bytes()
        at = generator.randrange(len(original))
        flipped = bytes([original[at] ^ generator.randrange(1, 256)]) + original[at + 1 :]
        path.write_bytes(original[:at] + (flipped if trial % 2 else b""))
        try:
            verify_folder(checkpoint)
            outcomes.append({"file": path.name, "at": at, "outcome": "not found"})
        except DamagedFolderError:
            outcomes.append({"file": path.name, "at": at, "outcome": "found"})
        path.write_bytes(original)
    return {"trials": outcomes}


def repeated_saves(folder: Path, saves: int) -> dict:
    """Saves of two processes without a fault; each counts as a trial."""
    answer = fault_harness.repeated_saves(str(folder), saves=saves)
    good = answer["complete"] if answer["statuses"] == [0, 0] else 0
    return {"trials": [{"outcome": "ok"}] * good + [{"outcome": str(answer["statuses"])}] * (saves - good)}


def random_kills(folder: Path, trials: int, seed: int) -> dict:
    """Runs killed one to five times each at random moments."""
    parts = [
        fault_harness.random_kills(str(folder / str(kills)), trials=trials // 5, kills=kills, seed=seed + kills)
        for kills in range(1, 6)
    ]
    return {"trials": [trial for part in parts for trial in part["trials"]]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/fault_injection.json", help="JSON file to write")
    parser.add_argument(
        "--trials", type=int, default=100, help="runs killed at random moments; damages are 3 times as many"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments, places and samples")
    arguments = parser.parse_args()
    started, sections = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for processes, rank in ((1, 0), (2, 0), (2, 1)):
            name = f"kill at every operation of a save, process {rank} of {processes}"
            sections[name] = fault_harness.crash_points(
                str(folder / name), processes=processes, rank=rank, save_total_limit=1
            )
        sections["saves of two processes without a fault"] = repeated_saves(folder / "saves", 25)
        sections["kills at random moments"] = random_kills(folder / "kills", arguments.trials, arguments.seed)
        sections["one file damaged"] = damaged_files(folder / "damage", 3 * arguments.trials, arguments.seed)
    counts = {name: dict(Counter(trial["outcome"] for trial in part["trials"])) for name, part in sections.items()}
    kills = sum(len(trial["newest_at_kill"]) for trial in sections["kills at random moments"]["trials"])
    results = write_results(
        arguments.output,
        metrics=counts | {"kills at random moments that hit a run": kills},
        seeds={"seed": arguments.seed},
        arguments=vars(arguments),
        wall_seconds=round(time.perf_counter() - started, 1),
        sections=sections,
    )
    print_results({name: value for name, value in results.items() if name != "sections"})
    return int(any(not outcome.startswith(("ok", "found")) for part in counts.values() for outcome in part))


if __name__ == "__main__":
    sys.exit(main())
