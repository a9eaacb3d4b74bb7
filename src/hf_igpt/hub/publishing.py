"""Publishing a staged folder: one commit with everything, checked against what arrived, and safe to run again."""

import hashlib
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_igpt.hub.patience import PublishingError, explain_or_wait, limit_waiting, patiently, waits
from hf_igpt.hub.repository_names import checked_repository
from hf_igpt.hub.secrets import check_upload
from hf_igpt.storage import MANIFEST


if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

# What the Hub puts into a new repository by itself.
_BY_THE_HUB = {".gitattributes"}


@dataclass(frozen=True)
class Target:
    """
    Where to publish.

    Args:
        repo_id: OWNER/NAME.
        repo_type: model or dataset.
        private: for a new repository; None takes the owner's default.
        known_commit: the newest commit that the caller has seen; None where it has seen none.
        known_files: files of that commit that the caller put there. Those that are not published again are removed.
    """

    repo_id: str
    repo_type: str = "model"
    private: bool | None = None
    known_commit: str | None = None
    known_files: Collection[str] = ()


@dataclass(frozen=True)
class Published:
    """
    What is on the Hub.

    Args:
        url: of the repository.
        commit: that holds the files; to be given as `revision`.
        is_new: whether it was made now; a repeated push of equal content makes none.
        files: SHA-256 by path.
    """

    url: str
    commit: str
    is_new: bool
    files: dict[str, str]


def check_access(target: Target) -> None:
    """
    Makes sure, before hours of work, that the repository is there or can be made, and may be written to.

    Raises:
        ValueError: the name is none, nobody is logged in, or `private` contradicts the repository.
        PublishingError: the Hub refuses, or can't be reached.
    """
    checked_repository(target.repo_id)
    _ensure_repository(_api(), target)


def publish(folder: Path, target: Target, message: str) -> Published:
    """
    Uploads every file of a folder in one commit on `main` and reads back what arrived. Run again after any failure, it
    goes on; a repository that holds the same files already gets no second commit.

    Raises:
        ValueError: as `check_access`; or a file holds a secret, or is a pickle or a link.
        PublishingError: the Hub refuses, can't be reached, has commits that the caller doesn't know, or holds other
            bytes than were sent.
    """
    checked_repository(target.repo_id)
    api = _api()
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    # It lists what lies here: a card that is edited on the Hub would contradict it.
    files.pop(MANIFEST, None)
    check_upload(files, known=[api.token])
    local = {name: _fingerprint(path) for name, path in files.items()}
    url = _ensure_repository(api, target)
    commit, is_new = _commit(api, target, files, local, message)
    logger.info("%s holds all %d files at commit %s.", url, len(files), commit)
    return Published(url, commit, is_new, {name: each["sha256"] for name, each in local.items()})


def add_to_collection(title: str, target: Target) -> str:
    """Puts a repository into the owner's collection of that title, which is made if there is none; its address."""
    api, owner = _api(), target.repo_id.split("/")[0]
    collection = patiently(lambda: api.create_collection(title=title, namespace=owner, exists_ok=True))
    patiently(
        lambda: api.add_collection_item(
            collection.slug, item_id=target.repo_id, item_type=target.repo_type, exists_ok=True
        )
    )
    return f"{api.endpoint}/collections/{collection.slug}"


def _api() -> "HfApi":
    from huggingface_hub import HfApi, get_token

    if (token := get_token()) is None:
        raise ValueError("Nobody is logged in to the Hub: run `hf auth login`, or set HF_TOKEN.")
    limit_waiting()
    return HfApi(token=token)


def _ensure_repository(api: "HfApi", target: Target) -> str:
    made = patiently(
        lambda: api.create_repo(target.repo_id, repo_type=target.repo_type, private=target.private, exist_ok=True)
    )
    if target.private is not None:
        found = patiently(lambda: api.repo_info(target.repo_id, repo_type=target.repo_type)).private
        if found != target.private:
            raise ValueError(
                f"`private` is {target.private}, but {target.repo_id} exists and is "
                f"{'private' if found else 'public'}. Change that in its settings, or leave `private` out."
            )
    return str(made)


def _commit(
    api: "HfApi", target: Target, files: Mapping[str, Path], local: Mapping[str, Any], message: str
) -> tuple[str, bool]:
    """The commit that holds the files, and whether it was made now."""
    before = None
    for wait in waits():
        head, remote = _state(api, target)
        before = before or head
        stale = [name for name in target.known_files if name in remote and name not in local]
        if not stale and all(_is_same(each, remote.get(name)) for name, each in local.items()):
            return head, head != before
        _check_known(target, head, remote)
        try:
            commit = _send(api, target, files, stale, head, message)
        except Exception as error:
            explain_or_wait(error, wait, target.repo_id)
        else:
            _check_arrived(api, target, commit, local)
            return commit, commit != before
    raise AssertionError("the last wait is None, which raises")


def _send(api: "HfApi", target: Target, files: Mapping[str, Path], stale: list[str], parent: str, message: str) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    return api.create_commit(
        target.repo_id,
        [*operations, *(CommitOperationDelete(name) for name in stale)],
        commit_message=message,
        repo_type=target.repo_type,
        # The Hub refuses with 412 where somebody else has committed since.
        parent_commit=parent,
    ).oid


def _state(api: "HfApi", target: Target) -> tuple[str, dict[str, Any]]:
    """Newest commit of main and its files by path."""
    head = patiently(lambda: api.repo_info(target.repo_id, repo_type=target.repo_type)).sha
    return head, _tree(api, target, head)


def _tree(api: "HfApi", target: Target, commit: str) -> dict[str, Any]:
    def read() -> dict[str, Any]:
        entries = api.list_repo_tree(target.repo_id, recursive=True, revision=commit, repo_type=target.repo_type)
        return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}

    return patiently(read)


def _check_known(target: Target, head: str, remote: Collection[str]) -> None:
    """Refuses to write over what the caller has not seen."""
    if head != target.known_commit and set(remote) - _BY_THE_HUB:
        seen = f"; the last push from here was {target.known_commit}" if target.known_commit else ""
        raise PublishingError(
            f"{target.repo_id} has files that were not published from here: its newest commit is {head}{seen}. "
            f"Nothing was uploaded. Look at it, then give `--parent_commit {head}` to publish on top of it."
        )


def _check_arrived(api: "HfApi", target: Target, commit: str, local: Mapping[str, Any]) -> None:
    remote = _tree(api, target, commit)
    if wrong := [name for name, each in local.items() if not _is_same(each, remote.get(name))]:
        raise PublishingError(
            f"{target.repo_id} holds other bytes at commit {commit} than were sent: {', '.join(wrong)}. Publish again "
            f"with `--parent_commit {commit}`, and don't use this commit."
        )


def _is_same(local: Mapping[str, Any], remote: Any) -> bool:
    """Whether a file on the Hub has the size and hash of the one here."""
    if remote is None or remote.size != local["size"]:
        return False
    return remote.lfs.sha256 == local["sha256"] if remote.lfs else remote.blob_id == local["blob"]


def _fingerprint(path: Path) -> dict[str, Any]:
    """Size, SHA-256, and git's hash of a file."""
    size = path.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            blob.update(block)
    return {"size": size, "sha256": sha256.hexdigest(), "blob": blob.hexdigest()}
