"""The one place that makes files appear, vanish and be trusted.

Whatever this package writes becomes visible whole or not at all, and whatever it goes on from is checked first:

- `staged_folder` writes a folder under a hidden name, adds a manifest of sizes and SHA-256, and renames it;
- `verify_folder`, `is_complete` and `newest_complete_checkpoint` read that manifest;
- `atomic_path`, `write_bytes`, `write_json` do the same for one file;
- `work_lock` lets one process make a folder while others wait;
- `folder_lock`, `check_claim`, `claim_folder`, `check_writable`, `clean_leftovers` guard an output folder.

JSON goes through `redact` first.

Names that begin with `.partial-`, `.removed-` or `.old-` are unfinished work. No reader looks at them. Not promised:
a disk that lies about sync, and file systems without atomic rename.
"""

import contextlib
import errno
import fnmatch
import functools
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_igpt.redaction import redact


logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LOCK = ".lock"
CLAIM = "run.json"
PARTIAL, REMOVED, OLD = ".partial-", ".removed-", ".old-"
SCRATCH = f"{PARTIAL}scratch-"


class DamagedFolderError(ValueError):
    """A folder doesn't hold what its manifest says; the message names the file."""


class FolderInUseError(ValueError):
    """Another run works in the folder, or owns it."""


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


# One file


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a hidden path beside `path`, with the same ending, to write to. On a clean exit it replaces `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file so that a reader finds the old or the new bytes, whole."""
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def plain(value: Any, where: str = "value") -> Any:
    """Turns numpy and torch scalars, arrays, paths and tuples into what JSON has.

    Raises ValueError with the place, under `where`, for NaN, infinities, keys that aren't text and unknown types. NaN
    has to be written as None by the caller.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(
                f"`{where}` must be a finite number, got {value}. Write None for a value that is missing."
            )
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"`{where}` must have text keys, got {wrong[0]!r}.")
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise ValueError(f"`{where}` must be numbers, text, lists or mappings, got {type(value).__name__}.")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes JSON in one step, secrets masked. NaN and infinities are refused, see `plain`."""
    text = json.dumps(redact(plain(value, Path(path).name)), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def read_json(path: str | os.PathLike) -> Any:
    """Reads JSON. Raises ValueError with the file's name if it is damaged or holds NaN or an infinity."""
    try:
        return json.loads(Path(path).read_bytes().decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} can't be read as JSON: {error}. Restore it, or delete it to make it anew."
        ) from error


# One folder


def _manifest_bytes(files: dict[str, dict]) -> bytes:
    return (json.dumps({"version": 1, "files": files}, indent=1, sort_keys=True) + "\n").encode()


def _listing(folder: Path) -> dict[str, Path]:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    files.pop(MANIFEST, None)
    return dict(sorted(files.items()))


def sha256(path: Path, sync: bool = False) -> str:
    """SHA-256 of a file in hexadecimal; with `sync` the file is on the disk afterwards."""
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(folder: Path) -> None:
    """Syncs every file and folder and writes the manifest."""
    files = {}
    for name, path in _listing(folder).items():
        files[name] = {"sha256": sha256(path, sync=True), "size": path.stat().st_size}
    _write_synced(folder / MANIFEST, _manifest_bytes(files))
    for inner in [path for path in folder.rglob("*") if path.is_dir()] + [folder]:
        _sync_folder(inner)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two paths in one step. False where the system or file system can't."""
    import ctypes

    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    at_cwd, exchange = -100, 2
    return rename is not None and rename(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0


def _publish(staged: Path, final: Path) -> None:
    if not final.exists():
        staged.rename(final)
    elif not _exchange(staged, final):
        # A kill between these two leaves no folder of that name: clean_leftovers puts the old one back.
        old = final.with_name(OLD + final.name)
        final.rename(old)
        staged.rename(final)
        shutil.rmtree(old)
    _sync_folder(final.parent)


def _no_barrier() -> None:
    pass


def _start_staging(final: Path, root: Path, overwrite: bool) -> None:
    if final.exists() and not overwrite:
        raise ValueError(f"{final} exists already. Choose another folder, or ask for it to be overwritten.")
    if final.exists() and not (final / MANIFEST).is_file() and not (final.is_dir() and not any(final.iterdir())):
        raise ValueError(f"{final} has no {MANIFEST}, so it isn't ours to replace. Choose another folder.")
    if root.exists():
        logger.warning("Removing %s, left by a run that was killed.", root)
        shutil.rmtree(root)
    (root / final.name).mkdir(parents=True)


@contextlib.contextmanager
def staged_folder(
    final: str | os.PathLike,
    *,
    is_writer: bool = True,
    barrier: Callable[[], None] | None = None,
    overwrite: bool = False,
) -> Iterator[Path]:
    """Makes a folder that becomes visible only when it is complete.

    Yields a hidden folder with the final name, `.partial-NAME/NAME`, on the same file system. With several processes
    all of them write into it; the one with `is_writer` alone creates, seals, renames and removes, between calls of
    `barrier`, because a rename by every process fails at random. On an exception nothing becomes visible.

    With `overwrite`, an older folder is replaced if it has a manifest, in one step where the system can swap folders.
    Raises ValueError if `final` exists otherwise.
    """
    final = Path(final)
    root = final.with_name(PARTIAL + final.name)
    barrier = barrier or _no_barrier
    if is_writer:
        _start_staging(final, root, overwrite)
    try:
        barrier()
        yield root / final.name
        barrier()
        if is_writer:
            _seal(root / final.name)
            _publish(root / final.name, final)
            shutil.rmtree(root)
    except BaseException:
        if is_writer:
            shutil.rmtree(root, ignore_errors=True)
        raise
    barrier()


def remove_folder(folder: str | os.PathLike) -> None:
    """Removes a folder so that a kill meanwhile leaves no half folder under its name."""
    folder = Path(folder)
    removed = folder.with_name(REMOVED + folder.name)
    if removed.exists():
        shutil.rmtree(removed)
    folder.rename(removed)
    shutil.rmtree(removed)


def _read_manifest(folder: Path) -> dict[str, dict]:
    path = folder / MANIFEST
    if not path.is_file():
        raise DamagedFolderError(f"{folder} has no {MANIFEST}: it was never finished, or the file was removed")
    data = path.read_bytes()
    try:
        content = json.loads(data)
        files = {name: {key: entry[key] for key in ("sha256", "size")} for name, entry in content["files"].items()}
        intact = _manifest_bytes(files) == data
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise DamagedFolderError(f"{path} is damaged or from another version")
    return files


def verify_folder(path: str | os.PathLike, *, needed: Sequence[str] = (), contents: bool = True) -> None:
    """Checks a folder against its manifest.

    `needed` are name patterns of files it must have. Without `contents` only names and sizes are compared, which costs
    no reading. Raises `DamagedFolderError` with the file and what is wrong: manifest missing or damaged, file missing,
    cut, changed, or not in the manifest.
    """
    folder = Path(path)
    try:
        recorded, present = _read_manifest(folder), _listing(folder)
        for name in sorted(recorded.keys() ^ present.keys()):
            reason = f"is not in its {MANIFEST}" if name in present else "is missing"
            raise DamagedFolderError(f"{name} in {folder} {reason}")
        if lacking := [pattern for pattern in needed if not fnmatch.filter(recorded, pattern)]:
            raise DamagedFolderError(f"{folder} was saved without {lacking[0]}")
        for name, entry in recorded.items():
            if (size := present[name].stat().st_size) != entry["size"]:
                raise DamagedFolderError(f"{name} in {folder} has {size} bytes where {entry['size']} were written")
        for name, entry in recorded.items() if contents else ():
            if sha256(present[name]) != entry["sha256"]:
                raise DamagedFolderError(f"{name} in {folder} has changed since it was written (SHA-256 differs)")
    except OSError as error:
        raise DamagedFolderError(f"{folder} can't be read: {error}") from error


def verify_if_listed(name_or_path: str | os.PathLike) -> None:
    """As `verify_folder` for a folder with a manifest. One without, and a name on the Hub, is left alone."""
    if (Path(name_or_path) / MANIFEST).is_file():
        verify_folder(name_or_path)


def is_complete(path: str | os.PathLike) -> bool:
    """Whether a finished stage can be taken as it is. A damaged folder is named in a warning and isn't complete."""
    if not Path(path).exists():
        return False
    try:
        verify_folder(path)
    except DamagedFolderError as error:
        logger.warning("Making %s again: %s.", path, error)
        return False
    return True


def list_checkpoints(run_folder: str | os.PathLike) -> list[tuple[int, Path]]:
    """The `checkpoint-N` folders of a run as (N, path), by N, complete or not."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in Path(run_folder).iterdir():
            match = re.fullmatch(r"checkpoint-([0-9]+)", path.name)
            if match and path.is_dir():
                found.append((int(match[1]), path))
    return sorted(found)


def newest_complete_checkpoint(run_folder: str | os.PathLike, needed: Sequence[str] = ()) -> Path | None:
    """The checkpoint with the highest step whose manifest holds, or None if the run has no checkpoint yet.

    `needed` is as for `verify_folder`. Each folder passed over is named in a warning with the reason.
    Raises `DamagedFolderError` if there are checkpoints and none can be used: a run never starts from zero in silence.
    """
    checkpoints = list_checkpoints(run_folder)
    for _, path in reversed(checkpoints):
        try:
            verify_folder(path, needed=needed)
            return path
        except DamagedFolderError as error:
            logger.warning("Passing over %s: %s.", path, error)
    if checkpoints:
        raise DamagedFolderError(
            f"None of the {len(checkpoints)} checkpoints in {run_folder} is complete (reasons above). Restore one, or "
            "delete them or choose another output folder to start from zero."
        )
    return None


# The output folder of a run


def clean_leftovers(folder: str | os.PathLike, name: str | None = None) -> None:
    """
    Removes what killed runs left in a folder, or of what was to be made there under one name, and says so once in a
    warning. Hold the lock meanwhile.
    """
    leftovers = []
    names = None if name is None else {f"{PARTIAL}{name}", f"{REMOVED}{name}", f"{OLD}{name}", f"{SCRATCH}{name}"}
    for path in sorted(Path(folder).iterdir()) if Path(folder).is_dir() else ():
        if names is not None and path.name not in names:
            continue
        if path.name.startswith(OLD) and not (final := path.with_name(path.name.removeprefix(OLD))).exists():
            logger.warning("Restoring %s, whose replacement was never finished.", final)
            path.rename(final)
        elif path.name.startswith((PARTIAL, REMOVED, OLD)):
            leftovers.append(path)
    if leftovers:
        names = ", ".join(path.name for path in leftovers)
        logger.warning("Removing what killed runs left unfinished in %s: %s.", folder, names)
    for path in leftovers:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def check_writable(folder: str | os.PathLike) -> None:
    """Makes the folder and writes a file into it, so that a run ends before its work and not after it.

    Raises ValueError with the path, the reason and what to do.
    """
    folder = Path(folder)
    remedies = {errno.ENOSPC: "Free some space", errno.EDQUOT: "Free some space"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / f"{PARTIAL}check", bytes(65536))
        (folder / f"{PARTIAL}check").unlink()
    except OSError as error:
        what = "is a file" if folder.is_file() else (error.strerror or str(error))
        remedy = remedies.get(error.errno, "Make it writable")
        raise ValueError(
            f"Output folder {folder} can't be written to: {what}. {remedy}, or choose another."
        ) from error


def check_claim(folder: str | os.PathLike, run_id: str) -> None:
    """Checks that a folder is a run's, or new.

    Raises `FolderInUseError` with both run ids if it is another run's, or if it holds files and no run's mark.
    """
    folder = Path(folder)
    mark = folder / CLAIM
    if mark.is_file():
        content = read_json(mark)
        owner = content.get("run_id") if isinstance(content, dict) else None
        if owner != run_id:
            raise FolderInUseError(f"{folder} belongs to run {owner}, this is run {run_id}. Choose another folder.")
        return
    if folder.is_dir() and (others := sorted(path.name for path in folder.iterdir() if path.name[0] != ".")):
        raise FolderInUseError(
            f"{folder} holds {others[0]} and isn't marked as the output of run {run_id}. Choose another folder."
        )


def claim_folder(folder: str | os.PathLike, run_id: str) -> None:
    """Marks a new folder as belonging to a run, or checks that it already does, see `check_claim`."""
    check_claim(folder, run_id)
    if not (Path(folder) / CLAIM).is_file():
        write_json(Path(folder) / CLAIM, {"run_id": run_id})


# Locks of this process: descriptor to device and inode.
_held: dict[int, tuple[int, int]] = {}


def _let_go(descriptor: int) -> None:
    if descriptor in _held:
        del _held[descriptor]
        os.close(descriptor)


def _let_go_of_all() -> None:
    for descriptor in list(_held):
        _let_go(descriptor)


@functools.cache
def _let_go_in_forks() -> None:
    # A forked data loader worker that outlives its parent would keep the lock through its copy of the descriptor.
    os.register_at_fork(after_in_child=_let_go_of_all)


@contextlib.contextmanager
def scratch_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """An empty folder beside `folder` for what is needed to make it. Removed in the end, and at the next start."""
    scratch = Path(folder).with_name(f"{SCRATCH}{Path(folder).name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def work_lock(folder: str | os.PathLike) -> Iterator[None]:
    """Lets one process at a time make a folder: another one waits here, and finds it finished.

    The lock is a hidden file beside the folder, which is removed in the end.
    """
    import fcntl

    path = Path(folder).with_name(f"{PARTIAL}{Path(folder).name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    _let_go_in_forks()
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES):
                raise
            # Nothing can be made here, so nobody has to wait; what is finished can be read.
            yield
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("Waiting for another process that makes %s.", folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        held = os.fstat(descriptor)
        # The file that was waited for may be gone, and another one in its place.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(held, os.stat(path)):
                break
        os.close(descriptor)
    _held[descriptor] = (held.st_dev, held.st_ino)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _let_go(descriptor)


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike, run_id: str, *, is_nested: bool = False) -> Iterator[None]:
    """Holds the one lock of an output folder. It ends with the process, however that ends.

    With `is_nested` a process that holds it already goes on.

    Raises `FolderInUseError` at once, with the holder's run id, if another run has it. With several processes only one
    of them takes the lock.
    """
    import fcntl

    Path(folder).mkdir(parents=True, exist_ok=True)
    _let_go_in_forks()
    descriptor = os.open(Path(folder) / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    status = os.fstat(descriptor)
    lock = (status.st_dev, status.st_ino)
    if is_nested and lock in _held.values():
        os.close(descriptor)
        yield
        return
    _held[descriptor] = lock
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 4096).decode(errors="replace") or "unknown"
            raise FolderInUseError(
                f"{folder} is in use by run {holder}. Wait for it to end, or choose another folder."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{run_id} (process {os.getpid()})".encode(), 0)
        yield
    finally:
        _let_go(descriptor)
