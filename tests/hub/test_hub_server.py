"""The Hub of the tests, met by the real client: what is kept, what is refused, what goes wrong and what is retried."""

import hashlib
import importlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hub_client import connect, go_online
from hub_server import Fault, HubServer
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_session,
    hf_hub_url,
    set_client_factory,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http


# The HTTP library of huggingface_hub, which has changed with its versions.
httpx2 = importlib.import_module(HTTPError.__module__.split(".")[0])

NAME = "someone/name"
CARD = b"---\nlicense: apache-2.0\n---\nWords\n"
# Patterns of the repository tell the weights, a zero byte the last one.
FILES = {
    "README.md": CARD,
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 40,
    "samples/grid.weird": b"x\0y" * 1000,
}
LARGE = ("model.safetensors", "samples/grid.weird")
COMMIT, STORE, PREUPLOAD = "POST .*/commit/", "PUT /storage/", "POST .*/preupload/"


@pytest.fixture
def waits(monkeypatch):
    yield go_online(monkeypatch)
    set_client_factory(_http.default_client_factory)


@pytest.fixture
def hub(waits):
    with HubServer(organizations=("lab",)) as server:
        server.add_repo(f"models/{NAME}")
        yield server


@pytest.fixture
def repo(hub):
    return hub.repos[f"models/{NAME}"]


def push(hub: HubServer, files: dict[str, bytes] = FILES, **options) -> str:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return connect(hub).create_commit(NAME, operations, commit_message="Upload", **options).oid


def seen(hub: HubServer, pattern: str = "") -> list[tuple[str, int | None]]:
    lines = [(f"{request.method} {request.path}", request.status) for request in hub.requests]
    return [(line, status) for line, status in lines if re.search(pattern, line)]


# What is kept


def test_one_commit_holds_regular_and_large_files(hub, repo):
    assert push(hub) == repo.head
    assert len(repo.commits) == 2
    assert {path: repo.files[path] for path in FILES} == FILES
    assert {path for path, stored in repo.commits[-1].files.items() if stored.large} == set(LARGE)
    assert b"samples/grid.weird filter=lfs" in repo.files[".gitattributes"]
    steps = ["validate-yaml", "preupload", "objects/batch", "/storage/", "/storage/", "verify", "verify", "/commit/"]
    assert sorted(re.search("|".join(steps), line)[0] for line, _ in seen(hub)) == sorted(steps)
    assert seen(hub)[-1][0] == f"POST /api/models/{NAME}/commit/main"
    assert [request.authorized for request in hub.requests] == [r.method != "PUT" for r in hub.requests]


def test_a_repository_is_created_once(hub):
    api = connect(hub)
    assert api.whoami()["name"] == "someone"
    url = api.create_repo("lab/data", repo_type="dataset", private=True)
    assert (url.repo_id, url.repo_type, url.endpoint) == ("lab/data", "dataset", hub.url)
    with pytest.raises(HfHubHTTPError, match="(?s)409.*already created"):
        api.create_repo("lab/data", repo_type="dataset")
    assert api.create_repo("lab/data", repo_type="dataset", exist_ok=True).repo_id == "lab/data"
    assert api.repo_info("lab/data", repo_type="dataset").private
    assert list(hub.repos["datasets/lab/data"].files) == [".gitattributes"]


def test_downloads_give_back_what_was_pushed(hub, repo, tmp_path):
    api, first = connect(hub), push(hub)
    repo.push({"config.json": b"[]"})
    for path, content in FILES.items():
        found = api.hf_hub_download(NAME, path, revision=first, cache_dir=tmp_path / "files")
        assert Path(found).read_bytes() == content
    folder = Path(api.snapshot_download(NAME, cache_dir=tmp_path / "snapshots"))
    assert folder.name == repo.head
    assert {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()} == (
        repo.files | {"config.json": b"[]"}
    )
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(NAME, "absent", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(NAME, "config.json", revision="absent", cache_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("someone/absent")


def test_listings_tell_sizes_and_hashes(hub, repo):
    api, head = connect(hub), push(hub)
    entries = {entry.path: entry for entry in api.list_repo_tree(NAME, recursive=True)}
    assert set(entries) == {*FILES, ".gitattributes", "samples"}
    # As `git hash-object` gives them.
    assert entries["config.json"].blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"
    assert entries["README.md"].blob_id == hashlib.sha1(b"blob %d\0" % len(CARD) + CARD).hexdigest()
    for path in LARGE:
        digest = hashlib.sha256(FILES[path]).hexdigest()
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n"
        pointer %= (digest.encode(), len(FILES[path]))
        assert entries[path].lfs == {"sha256": digest, "size": len(FILES[path]), "pointer_size": len(pointer)}
        assert entries[path].blob_id == hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
    assert {path: entries[path].size for path in FILES} == {path: len(content) for path, content in FILES.items()}
    assert {entry.path for entry in api.list_repo_tree(NAME)} == set(entries) - {"samples/grid.weird"}
    assert [entry.path for entry in api.list_repo_tree(NAME, "samples")] == ["samples/grid.weird"]
    assert {e.path for e in api.get_paths_info(NAME, ["README.md", "samples", "no"])} == {"README.md", "samples"}
    info = api.repo_info(NAME, files_metadata=True)
    assert info.sha == head == api.list_repo_refs(NAME).branches[0].target_commit
    assert {file.rfilename: file.blob_id for file in info.siblings} == {
        path: entry.blob_id for path, entry in entries.items() if path != "samples"
    }


def test_files_are_deleted_with_others_added(hub, repo):
    push(hub)
    deletions = [CommitOperationDelete("samples/"), CommitOperationDelete("config.json")]
    connect(hub).create_commit(NAME, [*deletions, CommitOperationAdd("a", b"b")], commit_message="Tidy")
    assert set(repo.files) == {".gitattributes", "README.md", "model.safetensors", "a"}
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        connect(hub).create_commit(NAME, [CommitOperationDelete("config.json")], commit_message="Tidy")


def test_ignored_files_stay_out(hub, repo):
    push(hub, {".gitignore": b"*.log\nold/\n", "run.log": b"l", "old/a.bin": b"o", "a.bin": b"b"})
    assert set(repo.files) == {".gitattributes", ".gitignore", "a.bin"}


def test_a_collection_is_made_once_and_filled(hub, repo):
    api = connect(hub)
    made = api.create_collection("A Family", description="Sizes", exists_ok=True)
    assert made.slug.startswith("someone/a-family-")
    assert api.create_collection("A Family", exists_ok=True).slug == made.slug
    for _ in range(2):
        found = api.add_collection_item(made.slug, NAME, "model", note="small", exists_ok=True)
        assert [(item.item_id, item.item_type, item.note) for item in found.items] == [(NAME, "model", "small")]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.add_collection_item(made.slug, NAME, "model")
    with pytest.raises(RepositoryNotFoundError):
        api.add_collection_item(made.slug, "someone/absent", "model")
    assert api.get_collection(made.slug).title == "A Family"


# What is refused


def test_writing_takes_the_token_of_an_owner(hub):
    hub.add_repo("models/else/theirs", {"a": b"a"})
    files = [CommitOperationAdd("a", b"b")]
    for api, name, status in (
        (HfApi(endpoint=hub.url, token=False), NAME, 401),
        (HfApi(endpoint=hub.url, token="hf_wrong"), NAME, 401),
        (connect(hub), "else/theirs", 403),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            api.create_commit(name, files, commit_message="Upload")
        assert refused.value.response.status_code == status
        with pytest.raises(HfHubHTTPError) as refused:
            api.create_repo(f"{name}-new")
        assert refused.value.response.status_code == status
    assert set(hub.repos) == {f"models/{NAME}", "models/else/theirs"}
    assert hub.repos["models/else/theirs"].files["a"] == b"a"


def test_a_private_repository_is_hidden(hub):
    hub.add_repo("models/lab/hidden", private=True)
    assert connect(hub).repo_info("lab/hidden").private
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).repo_info("lab/hidden")


def test_a_card_with_bad_metadata_stops_the_push(hub):
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        push(hub, FILES | {"README.md": b"---\na: [\n---\n"})
    assert len(seen(hub)) == 1
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        push(hub, {"README.md": b"Words"})


def test_a_stale_parent_is_refused(hub, repo):
    before = repo.head
    hub.fail(Fault("push", files={"config.json": b"theirs"}))
    with pytest.raises(HfHubHTTPError, match="A commit has happened since. Please refresh and try again.") as refused:
        push(hub, parent_commit=before)
    assert refused.value.response.status_code == 412
    assert repo.files["config.json"] == b"theirs"
    assert [commit.author for commit in repo.commits] == ["system", "someone-else"]
    push(hub, parent_commit=repo.head)
    assert repo.files["config.json"] == FILES["config.json"]


def test_without_parent_the_push_of_others_is_overwritten(hub, repo):
    hub.fail(Fault("push", files={"config.json": b"theirs", "b": b"theirs"}))
    push(hub)
    assert (repo.files["config.json"], repo.files["b"]) == (FILES["config.json"], b"theirs")


def test_equal_content_is_not_committed_again(hub, repo):
    first = push(hub)
    del hub.requests[:]
    assert push(hub, parent_commit=repo.commits[0].oid) == first  # a stale parent goes unnoticed
    assert not seen(hub, f"{COMMIT}|{STORE}")
    push(hub, FILES | {"config.json": b"[]"})
    [request] = [request for request in hub.requests if "/commit/" in request.path]
    assert request.body.count(b"\n") == 2 and b"config.json" in request.body
    assert len(repo.commits) == 3


# What goes wrong, and what the client makes of it


RETRIED = {
    "/validate-yaml": False,
    "/preupload/": True,
    "/objects/batch": True,
    "/storage/": True,
    "/objects/verify": True,
    "/commit/": False,
}
PASSING = {
    "408": Fault("answer", status=408),
    "429": Fault("answer", status=429),
    "500": Fault("answer", status=500),
    "503": Fault("answer", status=503),
    "refuse": Fault("refuse"),
    "cut_upload": Fault("cut_upload"),
    "lose_answer": Fault("lose_answer"),
    "cut_answer": Fault("cut_answer"),
}


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("step", RETRIED)
def test_what_create_commit_tries_again(hub, repo, waits, step, fault):
    hub.fail(replace(PASSING[fault], match=step))
    before = repo.head
    if RETRIED[step]:
        assert push(hub) == repo.head
        assert waits == [1]
        assert {path: repo.files[path] for path in FILES} == FILES
    else:
        kind = HfHubHTTPError if fault.isdigit() else httpx2.TransportError
        with pytest.raises(kind):
            push(hub)
        assert waits == []
    assert [request.faults for request in hub.requests if request.faults] == [[PASSING[fault].action]]
    committed = RETRIED[step] or (step == "/commit/" and fault in ("lose_answer", "cut_answer"))
    assert (repo.head != before) == committed


ONCE = {
    "whoami": lambda api: api.whoami(),
    "create_repo": lambda api: api.create_repo("someone/new", exist_ok=True),
    "repo_info": lambda api: api.repo_info(NAME),
    "list_repo_refs": lambda api: api.list_repo_refs(NAME),
    "get_paths_info": lambda api: api.get_paths_info(NAME, ["a"]),
    "create_collection": lambda api: api.create_collection("A", namespace="someone", exists_ok=True),
    "get_collection": lambda api: api.get_collection("someone/a"),
    "add_collection_item": lambda api: api.add_collection_item("someone/a", NAME, "model", exists_ok=True),
}


@pytest.mark.parametrize("call", ONCE)
def test_questions_and_creations_are_not_tried_again(hub, waits, call):
    hub.fail(Fault("answer"))
    with pytest.raises(HfHubHTTPError, match="503"):
        ONCE[call](connect(hub))
    assert len(seen(hub)) == 1
    assert waits == []


def test_listing_the_tree_is_tried_again(hub, waits):
    hub.fail(Fault("answer", "/tree/", times=2), Fault("lose_answer", "/tree/", first=3))
    assert [entry.path for entry in connect(hub).list_repo_tree(NAME)] == [".gitattributes"]
    assert waits == [1, 2, 4]


def test_waits_grow_and_end(hub, waits):
    hub.fail(Fault("answer", PREUPLOAD, times=None))
    with pytest.raises(HfHubHTTPError, match="503"):
        push(hub)
    assert waits == [1, 2, 4, 8, 8]
    assert len(seen(hub, PREUPLOAD)) == 6


def test_the_hub_may_name_any_wait(hub, waits):
    hour = {"Retry-After": "3600"}
    hub.fail(Fault("answer", PREUPLOAD, status=429, headers=hour), Fault("answer", STORE, headers=hour))
    push(hub)
    assert waits == [3601, 3601]


def test_a_client_of_ones_own_bounds_waits_and_silence(hub, waits):
    """`set_client_factory` is the only way in: http_backoff has its bounds as arguments that nobody passes."""

    class TooLong(Exception):
        pass

    def check(response: httpx2.Response) -> None:
        if int(response.headers.get("Retry-After", "0")) > 60:
            raise TooLong(response.headers["Retry-After"])

    hooks = {"request": [_http.hf_request_event_hook], "response": [check]}
    set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=0.1))
    hub.fail(Fault("delay", PREUPLOAD, seconds=30, times=2))
    push(hub)
    assert waits == [1, 2]
    hub.fail(Fault("answer", PREUPLOAD, headers={"Retry-After": "61"}))
    with pytest.raises(TooLong, match="61"):
        push(hub)


def test_a_lost_answer_leaves_a_commit_that_is_not_made_again(hub, repo):
    before = repo.head
    hub.fail(Fault("lose_answer", COMMIT))
    with pytest.raises(httpx2.RemoteProtocolError):
        push(hub, parent_commit=before)
    assert push(hub, parent_commit=before) == repo.head
    assert len(repo.commits) == 2


def test_an_error_may_come_after_the_commit(hub, repo):
    hub.fail(Fault("answer", COMMIT, status=500, processed=True))
    with pytest.raises(HfHubHTTPError, match="500"):
        push(hub)
    assert repo.files["config.json"] == FILES["config.json"]


def test_large_files_that_arrived_are_not_sent_again(hub, repo):
    hub.fail(Fault("refuse", COMMIT))
    with pytest.raises(httpx2.TransportError):
        push(hub)
    assert "config.json" not in repo.files
    push(hub)
    assert len(seen(hub, STORE)) == 2
    assert repo.files["model.safetensors"] == FILES["model.safetensors"]


def test_a_network_that_stays_down(hub, repo, waits):
    hub.fail(Fault("refuse", first=4, times=None))
    with pytest.raises(RuntimeError, match="Error while uploading") as failed:
        push(hub)
    assert isinstance(failed.value.__cause__, httpx2.TransportError)
    assert "config.json" not in repo.files
    assert {status for _, status in seen(hub)[3:]} == {None}


def test_upload_cut_halfway_is_not_stored(hub, repo):
    hub.fail(Fault("cut_upload", STORE, times=None))
    with pytest.raises(RuntimeError, match="Error while uploading"):
        push(hub)
    assert repo.objects == {}
    assert {len(request.body) for request in hub.requests if request.method == "PUT"} == {1500, 5120}


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
def test_what_arrived_shows_in_the_listing_and_is_mended_by_a_push(hub, repo, path):
    hub.fail(Fault("truncate", files=[path]))
    push(hub)
    half = FILES[path][: len(FILES[path]) // 2]
    assert repo.files == repo.files | FILES | {path: half}
    [found] = connect(hub).get_paths_info(NAME, [path])
    assert found.size == len(half)
    if path in LARGE:
        assert found.lfs.sha256 == hashlib.sha256(half).hexdigest()
    push(hub)
    assert repo.files[path] == FILES[path]
    assert len(repo.commits) == 3


def test_a_download_that_was_cut_starts_again(hub, waits, tmp_path):
    push(hub)
    hub.fail(Fault("cut_answer", "GET .*/resolve/", times=2))
    found = connect(hub).hf_hub_download(NAME, "model.safetensors", cache_dir=tmp_path)
    assert Path(found).read_bytes() == FILES["model.safetensors"]
    assert waits == [1, 1]
    # Only whole chunks of 10 MB are kept, so a small file is asked for from its beginning.
    assert [request.headers.get("range") for request in hub.requests if request.method == "GET"] == [None] * 3


@pytest.mark.parametrize("asked, start, end", [("5-9", 5, 10), ("10000-", 10000, 10240), ("-4", 10236, 10240)])
def test_parts_of_a_file(hub, asked, start, end):
    push(hub)
    url = hf_hub_url(NAME, "model.safetensors", endpoint=hub.url)
    part = get_session().get(url, headers={"Range": f"bytes={asked}"})
    assert (part.status_code, part.content) == (206, FILES["model.safetensors"][start:end])
    assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/10240"
    assert get_session().get(url, headers={"Range": "bytes=10240-"}).status_code == 416
    head = get_session().head(url).headers
    digest = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    assert (head["X-Linked-Etag"], head["X-Linked-Size"], head["X-Repo-Commit"]) == (f'"{digest}"', "10240", push(hub))


def test_a_download_retries_errors_of_its_first_question_only(hub, waits, tmp_path):
    push(hub)
    hub.fail(Fault("answer", "HEAD .*/resolve/", times=3))
    connect(hub).hf_hub_download(NAME, "config.json", cache_dir=tmp_path / "a")
    assert waits == [1, 2]
    hub.fail(Fault("answer", "GET .*/resolve/"))
    with pytest.raises(HfHubHTTPError, match="503"):
        connect(hub).hf_hub_download(NAME, "config.json", cache_dir=tmp_path / "b")
    hub.fail(Fault("lose_answer", "HEAD .*/resolve/"))
    with pytest.raises(httpx2.RemoteProtocolError):
        connect(hub).hf_hub_download(NAME, "config.json", cache_dir=tmp_path / "c")
    hub.fail(Fault("answer", "HEAD .*/resolve/", times=None))
    with pytest.raises(LocalEntryNotFoundError):
        connect(hub).hf_hub_download(NAME, "config.json", cache_dir=tmp_path / "d")
    assert waits == [1, 2, 1, 2, 4, 8, 8]


def test_an_error_page_in_place_of_json_hides_the_status(hub):
    hub.fail(Fault("answer", "/validate-yaml", body=b"<html>Bad gateway</html>", status=502))
    with pytest.raises(ValueError, match="Expecting value"):
        push(hub)


# The log, and a process of its own


def test_what_was_received_can_be_searched(hub):
    secrets = [b"regular-canary", b"large-canary", b"path-canary", b"message-canary"]
    files = {"a.txt": b"with " + secrets[0], "b.bin": b"\0" * 600 + secrets[1], "path-canary é": b"c"}
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    connect(hub).create_commit(NAME, operations, commit_message="message-canary")
    received = hub.received()
    assert [secret in received for secret in secrets] == [True] * 4
    assert hub.token.encode() not in received
    assert "token" not in seen(hub)[0][0]


SCRIPT = """
from huggingface_hub import ModelCard, create_commit, create_repo, CommitOperationAdd, snapshot_download, constants
from transformers import AutoConfig
create_repo("someone/new")
files = {"README.md": b"---\\nlicense: mit\\n---\\n", "config.json": b'{"model_type": "vit"}', "a.bin": b"a\\0"}
operations = [CommitOperationAdd(path, content) for path, content in files.items()]
made = create_commit("someone/new", operations, commit_message="Upload", revision="main")
assert ModelCard.load("someone/new").data.license == "mit"
ModelCard.load("someone/new").validate()
assert AutoConfig.from_pretrained("someone/new", revision=made.oid).model_type == "vit"
print(snapshot_download("someone/new"))
"""


def test_another_process_finds_the_server_by_its_environment(hub, tmp_path):
    environment = os.environ | hub.environment(tmp_path)
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder.is_relative_to(tmp_path)
    assert (folder / "a.bin").read_bytes() == b"a\0" == hub.repos["models/someone/new"].files["a.bin"]
    assert all(status for _, status in seen(hub))
