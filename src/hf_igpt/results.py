"""results.json: what a command did, with what, and what it measured."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from hf_igpt.redaction import redact
from hf_igpt.storage import plain, read_json, write_json


RESULTS = "results.json"
SCHEMA = "hf_igpt.results"
SCHEMA_VERSION = 1
_FIELDS = {
    "schema": str,
    "schema_version": int,
    "command": str,
    "created": str,
    "versions": dict,
    "commit": (dict, type(None)),
    "hardware": dict,
    "seeds": dict,
    "arguments": dict,
    "wall_seconds": (int, float, type(None)),
    "metrics": dict,
}


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide a result; None where one isn't installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("hf-igpt", "transformers", "torch", "accelerate", "datasets", "numpy"):
        try:
            versions[name.replace("-", "_")] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name.replace("-", "_")] = None
    return versions


def git_commit() -> dict[str, Any] | None:
    """Commit of the source tree this package is imported from and whether it has changes; None outside a checkout."""
    source = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(["git", *arguments], cwd=source, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    # An installed copy may lie inside somebody else's repository: only a tracked file tells.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None or (sha := git("rev-parse", "HEAD")) is None:
        return None
    return {"sha": sha, "dirty": git("status", "--porcelain") != ""}


def _command() -> list[str]:
    """This process's command as a user would type it, without the folders that programs lie in."""
    program = Path(sys.argv[0])
    if program.parent.name == "commands":
        return ["hf-igpt", program.stem, *sys.argv[1:]]
    if program.suffix == ".py":
        return ["python", f"{program.parent.name}/{program.name}".lstrip("/"), *sys.argv[1:]]
    return [program.name, *sys.argv[1:]]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def hardware() -> dict[str, Any]:
    """CPU name, cores this process may use, memory in bytes, and name and memory of every GPU."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": cores,
        "memory_bytes": _memory_bytes(),
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
    }


def _file_of(folder_or_file: str | os.PathLike) -> Path:
    path = Path(folder_or_file)
    return path if path.suffix == ".json" else path / RESULTS


def write_results(
    folder_or_file: str | os.PathLike,
    *,
    metrics: Mapping[str, Any],
    command: Sequence[str] | None = None,
    seeds: Mapping[str, int] | None = None,
    arguments: Mapping[str, Any] | None = None,
    wall_seconds: float | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Writes results.json into a folder (or to the `.json` file named) in one step and returns what it holds.

    `command` is the argument list, by default what this process was started with. `extra` adds fields. Secrets are
    masked. Raises ValueError with the field for NaN, infinities and types that JSON lacks.
    """
    if taken := sorted(extra.keys() & _FIELDS.keys()):
        raise ValueError(f"`{taken[0]}` is a field of every results.json. Choose another name.")
    results = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "command": shlex.join(map(str, _command() if command is None else command)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": package_versions(),
        "commit": git_commit(),
        "hardware": hardware(),
        "seeds": seeds or {},
        "arguments": arguments or {},
        "wall_seconds": wall_seconds,
        "metrics": metrics,
        **extra,
    }
    results = redact(plain(results, "results"))
    write_json(_file_of(folder_or_file), results)
    return results


def print_results(results: Mapping[str, Any]) -> None:
    """Prints results on one line of stdout: the last thing a command says."""
    print(json.dumps(redact(plain(results, "results")), ensure_ascii=False, allow_nan=False), flush=True)


def read_results(folder_or_file: str | os.PathLike) -> dict[str, Any]:
    """Reads a results.json. Raises ValueError with the field if it is damaged, of another version, or not one."""
    path = _file_of(folder_or_file)
    results = read_json(path)
    if not isinstance(results, dict):
        raise ValueError(f"{path} must hold an object, got {type(results).__name__}.")
    for field, kind in _FIELDS.items():
        if field not in results:
            raise ValueError(f"{path} lacks the field `{field}`. Run the command that made it again.")
        if not isinstance(results[field], kind) or (isinstance(results[field], bool) and kind is not bool):
            raise ValueError(f"`{field}` in {path} must not be {type(results[field]).__name__}.")
    for field, value in (("schema", SCHEMA), ("schema_version", SCHEMA_VERSION)):
        if results[field] != value:
            raise ValueError(
                f"`{field}` in {path} must be {value!r}, got {results[field]!r}: another version wrote it."
            )
    return results
