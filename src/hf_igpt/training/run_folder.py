"""The output folder of a run: one run at a time, and always the same run."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_igpt.arguments import fields_without_effect
from hf_igpt.stages import describe_differences
from hf_igpt.storage import CLAIM, check_claim, check_writable, claim_folder, folder_lock, read_json, write_json
from hf_igpt.token_kinds_igpt import PALETTE
from hf_igpt.training.arguments import ADAMW


# Fields that may change between a run and its continuation, since they change no number that training computes.
CHANGEABLE = frozenset(
    {
        "attn_implementation",
        "cpu_threads",
        "dataloader_num_workers",
        "ddp_timeout",
        "eval_steps",
        "gradient_checkpointing",
        "hub_license",
        "hub_model_id",
        "hub_private_repo",
        "logging_steps",
        "num_proc",
        "output_dir",
        "per_device_eval_batch_size",
        "per_device_train_batch_size",
        "push_to_hub",
        "report_to",
        "sample_steps",
        "save_steps",
        "save_total_limit",
        "torch_compile",
    }
)
ARGUMENTS = "arguments.json"
# In place of the value of an argument that another one leaves without effect.
NO_EFFECT = "no effect"
# What earlier versions didn't record, with what it was for them; where that is not known, nothing is compared.
ADDED = {
    "token_kind": PALETTE,
    "token_hash": NO_EFFECT,
    "optimizer": ADAMW,
    "matrix_learning_rate": NO_EFFECT,
    "rotary_base": None,
}


def run_identity(arguments: Any) -> dict[str, Any]:
    """The arguments that decide what a run computes."""
    values = dataclasses.asdict(arguments) | dict.fromkeys(fields_without_effect(arguments), NO_EFFECT)
    return {name: value for name, value in values.items() if name not in CHANGEABLE}


@contextlib.contextmanager
def run_folder(folder: str | os.PathLike, identity: dict[str, Any]) -> Iterator[None]:
    """
    Holds a run's folder for the run with this identity, on the main process.

    Raises:
        ValueError: the folder can't be written to, another run works in it, or it belongs to one with other
            arguments; lists what differs.
    """
    # Before anything is written: a lock file in another run's finished stage would spoil its manifest.
    check_owner(folder, identity)
    run_id = _recorded_id(folder) or hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    check_claim(folder, run_id)
    check_writable(folder)
    with folder_lock(folder, run_id):
        claim_folder(folder, run_id)
        write_json(Path(folder) / ARGUMENTS, identity)
        yield


def check_owner(folder: str | os.PathLike, identity: dict[str, Any]) -> None:
    """Raises ValueError with the differences where a folder belongs to a run with other arguments."""
    mark, recorded = Path(folder) / CLAIM, Path(folder) / ARGUMENTS
    if not (mark.is_file() and recorded.is_file()):
        return
    before = read_json(recorded)
    before = before if isinstance(before, dict) else {}
    before = {name: value for name, value in ADDED.items() if name in identity} | before
    # What has no effect in one of them differs only where the argument that decides this does. An earlier version
    # recorded its value, or didn't have the argument.
    compared = {name for name in {**before, **identity} if NO_EFFECT not in (before.get(name), identity.get(name))}
    before, now = ({name: side[name] for name in side if name in compared} for side in (before, identity))
    if differences := describe_differences(before, now):
        raise ValueError(f"{folder} belongs to another run: {differences}. Choose another `output_dir`.")


def _recorded_id(folder: str | os.PathLike) -> str | None:
    """The id of the run that a folder belongs to, None where its arguments aren't recorded beside it."""
    mark, recorded = Path(folder) / CLAIM, Path(folder) / ARGUMENTS
    content = read_json(mark) if mark.is_file() and recorded.is_file() else None
    run_id = content.get("run_id") if isinstance(content, dict) else None
    return run_id if isinstance(run_id, str) else None
