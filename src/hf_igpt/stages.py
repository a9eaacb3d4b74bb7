"""Stages of a job: each writes one folder, knows what it was made from, and is not done twice."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_igpt.storage import is_complete, plain, read_json, write_json


STAGE = "stage.json"


def write_stage(folder: str | os.PathLike, made_from: Mapping[str, Any]) -> None:
    """Notes in a folder that is being staged what it is made from."""
    write_json(Path(folder) / STAGE, dict(made_from))


def is_finished(folder: str | os.PathLike, made_from: Mapping[str, Any]) -> bool:
    """
    Whether a stage is complete and was made from the same inputs. False where it is absent or damaged.

    Raises:
        ValueError: it was made from other inputs; lists what differs, since taking it would be silently wrong and
            replacing it would lose it.
    """
    if not is_complete(folder):
        return False
    stage = Path(folder) / STAGE
    before = read_json(stage) if stage.is_file() else {}
    if differences := describe_differences(before, made_from):
        raise ValueError(
            f"{folder} was made from something else: {differences}. Choose another output folder, or remove this one."
        )
    return True


def describe_differences(before: Any, now: Mapping[str, Any]) -> str:
    """What differs between two mappings, in words; empty where nothing does."""
    before = before if isinstance(before, dict) else {}
    now = plain(dict(now))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)!r} and is now {now.get(name)!r}" for name in names)
