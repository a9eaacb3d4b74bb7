"""What a Hub keeps: repositories with their commits and large files, and collections. Knows nothing of HTTP."""

import hashlib
from base64 import b64decode
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any


LARGE_FILES = """*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy
*.npz *.onnx *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite
*.tgz *.wasm *.xz *.zip *.zst *tfevents*"""
ATTRIBUTES = "filter=lfs diff=lfs merge=lfs -text"
REGULAR_LIMIT = 10 * 1024 * 1024


class HubError(Exception):
    """Becomes an answer with this status; by `code` the client tells one 404 from another."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any):
        super().__init__(message)
        self.status, self.message, self.body = status, message, {"error": message, **body}
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


@dataclass(frozen=True)
class StoredFile:
    """Sizes and hashes are those of the bytes that are kept, not those the client announced."""

    content: bytes
    large: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob(self) -> bytes:
        """Git holds a pointer in place of a large file."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return pointer.encode() if self.large else self.content

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.blob) + self.blob).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "oid": self.oid, "size": len(self.content), "path": path}
        if self.large:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.blob)}
        return entry


EMPTY = StoredFile(b"")


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    description: str
    author: str
    files: dict[str, StoredFile]


class Repository:
    """One branch, `main`; `kind` is `models` or `datasets`, `name` has the namespace."""

    def __init__(self, kind: str, name: str, private: bool = False):
        self.kind, self.name, self.private = kind, name, private
        self.commits: list[Commit] = []
        self.objects: dict[str, bytes] = {}
        attributes = "".join(f"{pattern} {ATTRIBUTES}\n" for pattern in LARGE_FILES.split())
        self._add({".gitattributes": StoredFile(attributes.encode())}, "initial commit", "", "system")

    @property
    def head(self) -> str:
        return self.commits[-1].oid

    @property
    def files(self) -> dict[str, bytes]:
        return {path: stored.content for path, stored in self.commits[-1].files.items()}

    def at(self, revision: str) -> Commit:
        if revision in ("main", "refs/heads/main"):
            return self.commits[-1]
        for commit in self.commits:
            if commit.oid == revision:
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def push(self, files: dict[str, bytes], title: str = "Update", author: str = "someone-else") -> Commit:
        """A commit that didn't come over HTTP."""
        new = {path: StoredFile(content, self.is_large(path, content)) for path, content in files.items()}
        return self._add(self.commits[-1].files | new, title, "", author)

    def is_large(self, path: str, sample: bytes, size: int = 0) -> bool:
        return self._tracked(path) or b"\0" in sample or max(size, len(sample)) > REGULAR_LIMIT

    def upload_modes(self, revision: str, payload: dict[str, Any]) -> list[dict[str, Any]]:
        """`oid` of what is there already is what the client skips unchanged files by: the sha256 of large ones.

        Rules of `.gitignore` are matched with whole paths and with their parts; negated ones are not understood.
        """
        present = self.at(revision).files
        rules = payload.get("gitIgnore") or present.get(".gitignore", EMPTY).content.decode()
        rules = [rule.strip().strip("/") for rule in rules.splitlines() if rule.strip() and not rule.startswith("#")]
        modes = []
        for file in payload["files"]:
            path = file["path"]
            large = self.is_large(path, b64decode(file["sample"]), file["size"])
            ignored = any(fnmatch(part, rule) for part in [path, *path.split("/")] for rule in rules)
            mode = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": ignored}
            if path in present:
                mode["oid"] = present[path].sha256 if present[path].large else present[path].oid
            modes.append(mode)
        return modes

    def commit(self, lines: list[dict[str, Any]], author: str, truncated: set[str]) -> Commit:
        """All operations or none. Equal content makes a commit too, as on the Hub: clients must not send it."""
        header, *operations = ((line["key"], line["value"]) for line in lines)
        parent = header[1].get("parentCommit")
        if parent is not None and not self.head.startswith(parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(self.commits[-1].files)
        for key, value in operations:
            path = value["path"]
            if key in ("deletedFile", "deletedFolder"):
                self._delete(files, path, folder=key == "deletedFolder")
                continue
            new = self._file(value) if key == "file" else self._large_file(path, value["oid"])
            files[path] = replace(new, content=new.content[: len(new.content) // 2]) if path in truncated else new
            if new.large and not self._tracked(path):
                attributes = files.get(".gitattributes", EMPTY).content + f"{path} {ATTRIBUTES}\n".encode()
                files[".gitattributes"] = StoredFile(attributes)
        return self._add(files, header[1]["summary"], header[1].get("description", ""), author)

    def info(self, revision: str, sizes: bool) -> dict[str, Any]:
        commit = self.at(revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        for sibling in siblings if sizes else []:
            entry = commit.files[sibling["rfilename"]].entry(sibling["rfilename"])
            sibling |= {"size": entry["size"], "blobId": entry["oid"]}
            if "lfs" in entry:
                sibling["lfs"] = {"sha256" if key == "oid" else key: value for key, value in entry["lfs"].items()}
        return {
            "id": self.name,
            "author": self.name.split("/")[0],
            "sha": commit.oid,
            "private": self.private,
            "siblings": siblings,
        }

    def tree(self, revision: str, folder: str = "", recursive: bool = False) -> list[dict[str, Any]]:
        start = f"{folder}/" if folder else ""
        shown = {}
        for path, stored in sorted(self.at(revision).files.items()):
            if not path.startswith(start):
                continue
            for parent in PurePosixPath(path).parents:
                if str(parent) != "." and str(parent).startswith(start):
                    shown[str(parent)] = self._folder(str(parent))
            shown[path] = stored.entry(path)
        if folder and not shown:
            raise HubError(404, f'"{folder}" does not exist on "{revision}"', "EntryNotFound")
        return [entry for path, entry in shown.items() if recursive or "/" not in path.removeprefix(start)]

    def paths_info(self, revision: str, paths: list[str]) -> list[dict[str, Any]]:
        """Paths that don't exist are left out."""
        files = self.at(revision).files
        found = [files[path].entry(path) for path in paths if path in files]
        folders = [path for path in paths if any(name.startswith(f"{path}/") for name in files)]
        return found + [self._folder(path) for path in folders]

    def _add(self, files: dict[str, StoredFile], title: str, description: str, author: str) -> Commit:
        tree = "".join(f"{path} {stored.oid}\n" for path, stored in sorted(files.items()))
        oid = hashlib.sha1(f"{self.kind}/{self.name} {len(self.commits)} {title}\n{tree}".encode()).hexdigest()
        self.commits.append(Commit(oid, title, description, author, files))
        return self.commits[-1]

    def _tracked(self, path: str) -> bool:
        attributes = self.commits[-1].files.get(".gitattributes", EMPTY).content.decode()
        patterns = [rule.split()[0] for rule in attributes.splitlines() if "filter=lfs" in rule]
        return any(fnmatch(path if "/" in pattern else path.rsplit("/")[-1], pattern) for pattern in patterns)

    def _file(self, value: dict[str, Any]) -> StoredFile:
        content = value["content"]
        return StoredFile(b64decode(content) if value.get("encoding") == "base64" else content.encode())

    def _large_file(self, path: str, oid: str) -> StoredFile:
        if oid not in self.objects:
            message = "Your push was rejected because an LFS pointer pointed to a file that does not exist."
            raise HubError(400, f"{message} Offending file: - {path}")
        return StoredFile(self.objects[oid], large=True)

    def _delete(self, files: dict[str, StoredFile], path: str, folder: bool) -> None:
        gone = [name for name in files if (name.startswith(path.rstrip("/") + "/") if folder else name == path)]
        if not gone:
            raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        for name in gone:
            del files[name]

    def _folder(self, path: str) -> dict[str, Any]:
        return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}


@dataclass
class Collection:
    slug: str
    title: str
    owner: str
    description: str | None = None
    private: bool = False
    items: list[dict[str, Any]] = field(default_factory=list)

    def add(self, kind: str, name: str, note: str | None) -> None:
        if len(note or "") > 500:
            raise HubError(400, "A note must have at most 500 characters")
        if any((item["type"], item["id"]) == (kind, name) for item in self.items):
            raise HubError(409, "Item already in collection")
        item = {"_id": f"{len(self.items):024x}", "type": kind, "id": name, "position": len(self.items)}
        self.items.append(item | ({"note": {"text": note}} if note else {}))

    def as_json(self) -> dict[str, Any]:
        fixed = {"lastUpdated": "2024-01-01T00:00:00.000Z", "position": 0, "theme": "blue", "upvotes": 0}
        return vars(self) | fixed | {"owner": {"type": "user", "name": self.owner}}
