"""What a Hub answers: its endpoints over the state, with the statuses, bodies and headers the client reads.

Left out: pull requests, branches, tags, histories, Xet, multipart uploads, pages of long listings, Spaces, gating.
Large files are served by the Hub itself, not by a storage host it redirects to.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_state import Collection, HubError, Repository


API = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
PAGE = r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)"
FRONT_MATTER = re.compile(r"\A\s*---\n(.*?\n)---(\n|\Z)", re.DOTALL)
ROUTES: list[tuple[str, re.Pattern, Callable]] = []


@dataclass
class Request:
    """One line of the log. `status` stays None when no answer was sent, names of headers are in lower case.

    Files that the request commits and that are in `truncated` lose their second half.
    """

    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    status: int | None = None
    faults: list[str] = field(default_factory=list)
    truncated: set[str] = field(default_factory=set)

    @property
    def authorized(self) -> bool:
        return "authorization" in self.headers

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]


def json_answer(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json"} | (headers or {}))


def route(methods: str, path: str) -> Callable[[Callable], Callable]:
    """Groups of `path` become arguments, unquoted."""

    def register(function: Callable) -> Callable:
        ROUTES.append((methods, re.compile(path), function))
        return function

    return register


class Hub:
    """One user with one token, who owns a namespace and those of some organizations."""

    def __init__(self, token: str, user: str, organizations: tuple[str, ...] = ()):
        self.token, self.user = token, user
        self.organizations, self.namespaces = organizations, {user, *organizations}
        self.url = ""
        self.repos: dict[str, Repository] = {}
        self.collections: dict[str, Collection] = {}

    def answer(self, request: Request) -> Answer:
        try:
            if request.headers.get("authorization", f"Bearer {self.token}") != f"Bearer {self.token}":
                raise HubError(401, "Invalid credentials in Authorization header")
            if "create_pr" in request.query:
                raise HubError(501, "Pull requests are not part of this server")
            for methods, pattern, function in ROUTES:
                found = pattern.fullmatch(urlsplit(request.path).path)
                if found and request.method in methods.split():
                    values = {name: unquote(value or "") for name, value in found.groupdict().items()}
                    if "kind" in values:
                        values["kind"] = values["kind"] or "models"
                    return function(self, request, **values)
            raise HubError(404, "Sorry, we can't find the page you are looking for.")
        except HubError as error:
            return json_answer(error.body, error.status, error.headers)

    @route("GET", "/api/whoami-v2")
    def whoami(self, request: Request) -> Answer:
        self._allow(request, self.user, "")
        organizations = [{"type": "org", "name": name, "roleInOrg": "admin"} for name in self.organizations]
        return json_answer({"type": "user", "name": self.user, "orgs": organizations})

    @route("POST", "/api/repos/create")
    def create_repo(self, request: Request) -> Answer:
        asked = request.json()
        namespace, kind = asked.get("organization") or self.user, asked.get("type") or "model"
        name = f"{namespace}/{asked['name']}"
        refusal = f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"'
        self._allow(request, namespace, refusal)
        url = f"{self.url}/{name}" if kind == "model" else f"{self.url}/{kind}s/{name}"
        if f"{kind}s/{name}" in self.repos:
            raise HubError(409, f"You already created this {kind} repo", url=url)
        self.add_repo(f"{kind}s/{name}", private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return json_answer({"url": url, "name": name})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, request: Request) -> Answer:
        found = FRONT_MATTER.match(request.json()["content"])
        if not found:
            return json_answer(
                {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
            )
        try:
            yaml.safe_load(found[1])
        except yaml.YAMLError as error:
            return json_answer({"errors": [{"message": str(error)}], "warnings": []}, status=400)
        return json_answer({"errors": [], "warnings": []})

    @route("POST", API + "/preupload/(?P<revision>[^/]+)")
    def preupload(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        repository = self._repository(request, kind, name, write=True)
        return json_answer({"files": repository.upload_modes(revision, request.json())})

    @route("POST", PAGE + r"\.git/info/lfs/objects/batch")
    def large_files(self, request: Request, kind: str, name: str) -> Answer:
        """Objects that are there already get no actions: the client then skips their upload."""
        repository = self._repository(request, kind, name, write=True)
        objects = request.json()["objects"]
        for item in objects:
            if item["oid"] not in repository.objects:
                upload = {"href": f"{self.url}/storage/{kind}/{name}/{item['oid']}"}
                verify = {"href": f"{self.url}/{kind}/{name}.git/info/lfs/objects/verify"}
                item["actions"] = {"upload": upload, "verify": verify}
        headers = {"Content-Type": "application/vnd.git-lfs+json"}
        return json_answer({"transfer": "basic", "objects": objects}, headers=headers)

    @route("PUT", r"/storage/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})")
    def store(self, request: Request, kind: str, name: str, oid: str) -> Answer:
        """Like a signed address of a storage host: without authorization, and any bytes are taken."""
        self.repos[f"{kind}/{name}"].objects[oid] = request.body
        return Answer(200, b"", {})

    @route("POST", r"/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/verify")
    def verify(self, request: Request, kind: str, name: str) -> Answer:
        asked = request.json()
        content = self._repository(request, kind, name, write=True).objects.get(asked["oid"])
        if content is None or len(content) != asked["size"]:
            raise HubError(422, "Object does not exist or has another size")
        return json_answer({})

    @route("POST", API + "/commit/(?P<revision>[^/]+)")
    def commit(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        repository = self._repository(request, kind, name, write=True)
        if revision != "main":
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in request.body.splitlines()]
        made = repository.commit(lines, self.user, request.truncated)
        url = f"{self.url}/{'datasets/' if kind == 'datasets' else ''}{name}/commit/{made.oid}"
        return json_answer({"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})

    @route("GET", API + "(?:/revision/(?P<revision>[^/]+))?")
    def repo_info(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        return json_answer(self._repository(request, kind, name).info(revision or "main", "blobs" in request.query))

    @route("GET", API + "/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
    def tree(self, request: Request, kind: str, name: str, revision: str, folder: str) -> Answer:
        recursive = request.query.get("recursive", ["false"])[0].lower() == "true"
        return json_answer(self._repository(request, kind, name).tree(revision, folder, recursive))

    @route("POST", API + "/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        paths = parse_qs(request.body.decode()).get("paths", [])
        return json_answer(self._repository(request, kind, name).paths_info(revision, paths))

    @route("GET", API + "/refs")
    def refs(self, request: Request, kind: str, name: str) -> Answer:
        head = self._repository(request, kind, name).head
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": head}
        return json_answer({"branches": [branch], "tags": [], "converts": []})

    @route("GET HEAD", PAGE + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, request: Request, kind: str, name: str, revision: str, path: str) -> Answer:
        commit = self._repository(request, kind, name).at(revision)
        if path not in commit.files:
            error = HubError(404, "Entry not found", "EntryNotFound")
            error.headers["X-Repo-Commit"] = commit.oid
            raise error
        stored = commit.files[path]
        tag = f'"{stored.sha256 if stored.large else stored.oid}"'
        headers = {"X-Repo-Commit": commit.oid, "ETag": tag, "Accept-Ranges": "bytes"}
        if stored.large:
            headers |= {"X-Linked-Etag": tag, "X-Linked-Size": str(len(stored.content))}
        return _in_range(stored.content, request.headers.get("range"), headers)

    @route("POST", "/api/collections")
    def create_collection(self, request: Request) -> Answer:
        asked = request.json()
        title, owner, description = asked["title"], asked["namespace"], asked.get("description")
        self._allow(request, owner, "You don't have the rights to create a collection under this namespace")
        if len(description or "") > 150:
            raise HubError(400, "A description must have at most 150 characters")
        for known in self.collections.values():
            if (known.title, known.owner) == (title, owner):
                raise HubError(409, "This collection already exists", slug=known.slug)
        words = re.sub(r"\W+", "-", title.lower()).strip("-")
        slug = f"{owner}/{words}-{hashlib.sha1(title.encode()).hexdigest()[:24]}"
        self.collections[slug] = Collection(slug, title, owner, description, asked.get("private", False))
        return json_answer(self.collections[slug].as_json())

    @route("POST", "/api/collections/(?P<slug>[^/]+/[^/]+)/items")
    def add_to_collection(self, request: Request, slug: str) -> Answer:
        asked = request.json()
        kind, name = asked["item"]["type"], asked["item"]["id"]
        collection = self._collection(slug)
        self._allow(request, collection.owner, "You don't have the rights to edit this collection")
        self._repository(request, f"{kind}s", name)
        collection.add(kind, name, asked.get("note"))
        return json_answer(collection.as_json())

    @route("GET", "/api/collections/(?P<slug>[^/]+/[^/]+)")
    def get_collection(self, request: Request, slug: str) -> Answer:
        return json_answer(self._collection(slug).as_json())

    def add_repo(self, key: str, files: dict[str, bytes] | None = None, private: bool = False) -> Repository:
        """`key` as in `repos`, such as `models/someone/name`."""
        kind, name = key.split("/", 1)
        self.repos[key] = Repository(kind, name, private)
        if files:
            self.repos[key].push(files)
        return self.repos[key]

    def _repository(self, request: Request, kind: str, name: str, write: bool = False) -> Repository:
        """One that may not be seen answers like one that isn't there."""
        mine = request.authorized and name.split("/")[0] in self.namespaces
        repository = self.repos.get(f"{kind}/{name}")
        if repository is None or (repository.private and not mine):
            raise HubError(404 if request.authorized else 401, "Repository not found", "RepoNotFound")
        if write:
            refusal = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
            self._allow(request, name.split("/")[0], refusal)
        return repository

    def _allow(self, request: Request, namespace: str, refusal: str) -> None:
        if not request.authorized:
            raise HubError(401, "Invalid username or password.")
        if namespace not in self.namespaces:
            raise HubError(403, refusal)

    def _collection(self, slug: str) -> Collection:
        if slug not in self.collections:
            raise HubError(404, "Collection not found")
        return self.collections[slug]


def _in_range(content: bytes, asked: str | None, headers: dict[str, str]) -> Answer:
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "")
    if not found or not any(found.groups()):
        return Answer(200, content, headers)
    size = len(content)
    start = int(found[1]) if found[1] else max(size - int(found[2]), 0)
    end = min(int(found[2]), size - 1) if found[1] and found[2] else size - 1
    if start > end:
        return Answer(416, b"", headers | {"Content-Range": f"bytes */{size}"})
    return Answer(206, content[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{size}"})
