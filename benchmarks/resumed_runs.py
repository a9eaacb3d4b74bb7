"""Runs that a script adds to a results JSON one by one, so that it can be started again and repeats none of them."""

from pathlib import Path
from typing import Any

from hf_igpt.results import git_commit, read_results, write_results


class ResumedRuns:
    """
    The runs in a results JSON.

    Args:
        path: of the file; it need not be there.
        shared: what all of its runs have in common, and what its metrics hold beside them.

    Raises:
        SystemExit: the file's runs have something else in common.
    """

    def __init__(self, path: str, shared: dict[str, Any]):
        self.path, self.shared = path, shared
        found = read_results(path)["metrics"] if Path(path).is_file() else {"runs": [], **shared}
        differing = [name for name, value in shared.items() if found.get(name) != value]
        if differing:
            raise SystemExit(
                f"The runs in {path} have other {', '.join(differing)} than asked for. Choose another --output."
            )
        self.runs: list[dict[str, Any]] = found["runs"]

    def has(self, key: dict[str, Any]) -> bool:
        """Whether there is a run with these options."""
        return any(key.items() <= run.items() for run in self.runs)

    def add(self, run: dict[str, Any], arguments: dict[str, Any]) -> None:
        """Writes the file with one more run."""
        self.runs.append(run | {"commit": git_commit()})
        seeds = {f"run {seed}": seed for seed in sorted({run["seed"] for run in self.runs})}
        write_results(self.path, metrics={"runs": self.runs, **self.shared}, arguments=arguments, seeds=seeds)
