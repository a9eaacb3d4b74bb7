"""From a checkpoint or tokenized images to a repository: stage the files, publish them, write down what was done."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_igpt.hub.publishing import Target, add_to_collection, publish
from hf_igpt.results import RESULTS, read_results, write_results
from hf_igpt.storage import check_writable, staged_folder


logger = logging.getLogger(__name__)

FILES = "files"


def push(
    stage: Callable[[Path], Any],
    output_dir: str | os.PathLike,
    target: Target,
    *,
    arguments: Mapping[str, Any],
    collection: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """
    Stages a release in `output_dir/files`, publishes it and writes `output_dir/results.json`, which it returns.

    Args:
        stage: puts the files into the folder that it is given.
        target: where to. What an earlier push from this folder left is added to it.
        arguments: of the command, for the results.
        collection: title of the owner's collection to put the repository into.
        dry_run: stage the files and upload nothing.

    Raises:
        ValueError, PublishingError: as `stage` and `publish`.
    """
    started, folder = time.perf_counter(), Path(output_dir)
    check_writable(folder)
    with staged_folder(folder / FILES, overwrite=True) as staged:
        stage(staged)
    if dry_run:
        logger.info("%s holds what would be published; nothing was uploaded.", folder / FILES)
        metrics: dict[str, Any] = {"published": False}
    else:
        target = _with_history(target, folder)
        published = publish(folder / FILES, target, f"Publish {target.repo_id.split('/')[1]} with hf_igpt")
        metrics = {
            "published": True,
            "repo_id": target.repo_id,
            "repo_type": target.repo_type,
            "url": published.url,
            "commit": published.commit,
            "is_new_commit": published.is_new,
            "files": published.files,
        }
        # Before the collection: what was published is known from now on, whatever happens to that.
        _write(folder, metrics, arguments, started)
        if collection is not None:
            metrics["collection"] = add_to_collection(collection, target)
    return _write(folder, metrics, arguments, started)


def _write(folder: Path, metrics: dict[str, Any], arguments: Mapping[str, Any], started: float) -> dict[str, Any]:
    if not metrics["published"] and _last_push(folder):
        # A dry run must not forget what is on the Hub.
        return write_results(
            folder / "dry-run.json", metrics=metrics, arguments=arguments, wall_seconds=time.perf_counter() - started
        )
    return write_results(folder, metrics=metrics, arguments=arguments, wall_seconds=time.perf_counter() - started)


def _last_push(folder: Path) -> dict[str, Any] | None:
    """What the last push from this folder wrote down."""
    if not (folder / RESULTS).is_file():
        return None
    metrics = read_results(folder)["metrics"]
    return metrics if metrics.get("published") else None


def _with_history(target: Target, folder: Path) -> Target:
    """The target with the commit and files of the last push from this folder, unless it went elsewhere."""
    last = _last_push(folder)
    if last is None or (last["repo_id"], last["repo_type"]) != (target.repo_id, target.repo_type):
        return target
    known = target.known_commit or last["commit"]
    return Target(target.repo_id, target.repo_type, target.private, known, tuple(last["files"]))
