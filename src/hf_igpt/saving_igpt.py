"""Saving over what is there, so that a process that is killed leaves the old or the new, and never a mixture."""

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


_CONFIG = "config.json"
_CONFIGS = (_CONFIG, "preprocessor_config.json")
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
MODEL_FILES = re.compile(rf"{re.escape(_CONFIG)}|{_WEIGHTS.pattern}")


def save_over(
    save: Callable[[str | os.PathLike], Any],
    folder: str | os.PathLike,
    replaced: re.Pattern,
    obsolete: Iterable[str] = (),
) -> None:
    """
    Calls `save` with `folder` or, where that has files to be replaced, with a hidden folder inside it, whose files are
    then moved over the old ones.

    A config can't be replaced in one step with its weights, or with the model in a folder beside it. The old config
    goes first and the new one comes last: what a kill leaves in between doesn't load, and the new one is whole in the
    hidden folder.

    Args:
        save: writes files into the folder that it is given.
        folder: where they belong.
        replaced: names of files that must not be written in place.
        obsolete: names of what belongs to the old files alone. It is removed when the new ones are there.
    """
    final = Path(folder).absolute()
    if not final.is_dir() or not any(replaced.fullmatch(path.name) for path in final.iterdir()) or is_one_of_many():
        save(folder)
        return
    root = final / ".partial-save"
    shutil.rmtree(root, ignore_errors=True)
    # The same name again: transformers names a repository after it.
    staged = root / final.name
    staged.mkdir(parents=True)
    try:
        save(str(staged))
        _move(staged, final)
        for name in obsolete:
            os.replace(final / name, staged / name)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def is_one_of_many() -> bool:
    """Whether several processes work, and write into one folder, together; Trainer gives them a new one."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _move(staged: Path, final: Path) -> None:
    names = sorted((path.name for path in staged.iterdir()), key=lambda name: name in _CONFIGS)
    merged = [name for name in names if (staged / name).is_dir() and (final / name).is_dir()]
    weights = [name for name in names if _WEIGHTS.fullmatch(name)]
    if merged or weights:
        for name in set(_CONFIGS).intersection(names):
            (final / name).unlink(missing_ok=True)
    if weights and _CONFIG in names:
        # One file of weights is read before shards, so that an old one must not stay beside new shards.
        for path in [path for path in final.iterdir() if _WEIGHTS.fullmatch(path.name) and path.name not in names]:
            path.unlink()
    for name in names:
        if name in merged:
            _move(staged / name, final / name)
        else:
            os.replace(staged / name, final / name)


class SavedOverMixin:
    """Models that are saved over older ones: a kill leaves the old one, the new one or none, never a mixture."""

    def save_pretrained(self, save_directory, is_main_process=True, *args, **kwargs):
        """As in transformers. Over an older model a kill leaves the old one, the new one or none, never a mixture."""
        save = super().save_pretrained
        if not is_main_process or kwargs.get("distributed_checkpoint"):
            save(save_directory, is_main_process, *args, **kwargs)
        else:
            save_over(lambda folder: save(folder, True, *args, **kwargs), save_directory, MODEL_FILES)


__all__ = ["MODEL_FILES", "SavedOverMixin", "is_one_of_many", "save_over"]
