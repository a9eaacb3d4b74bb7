"""One commit with everything or nothing, whatever happens to the connection; met with the real client and a Hub."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hub_client import go_online
from hub_server import Fault, HubServer
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import _http

from hf_igpt.hub import patience
from hf_igpt.hub.patience import PublishingError
from hf_igpt.hub.publishing import Target, add_to_collection, check_access, publish


NAME = "someone/igpt-tiny"
TARGET = Target(NAME)
FILES = {
    "README.md": b"---\nlicense: apache-2.0\n---\nA card\n",
    "config.json": b'{"model_type": "igpt"}',
    "model.safetensors": bytes(range(256)) * 40,
    "results/pretraining.json": b'{"metrics": {}}',
    "images/samples.png": b"\x89PNG\0" * 100,
}
COMMIT = "POST .*/commit/"


@pytest.fixture
def waits(monkeypatch):
    waited = go_online(monkeypatch)
    monkeypatch.setattr(patience, "time", SimpleNamespace(**vars(time) | {"sleep": waited.append}))
    yield waited
    set_client_factory(_http.default_client_factory)


@pytest.fixture
def hub(waits, monkeypatch):
    with HubServer(organizations=("lab",)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "release" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "release"


def repository(hub):
    return hub.repos[f"models/{NAME}"]


def published(hub) -> dict[str, bytes]:
    return {name: content for name, content in repository(hub).files.items() if name != ".gitattributes"}


def commits_with_files(hub) -> int:
    return sum("model.safetensors" in commit.files for commit in repository(hub).commits)


def num_requests(folder) -> int:
    """Requests of an undisturbed push."""
    with HubServer() as server, pytest.MonkeyPatch.context() as patch:
        go_online(patch)
        patch.setattr(constants, "ENDPOINT", server.url)
        patch.setenv("HF_TOKEN", server.token)
        publish(folder, TARGET, "Publish")
        return len(server.requests)


def test_everything_arrives_in_one_commit_and_a_second_push_makes_none(hub, folder):
    done = publish(folder, TARGET, "Publish it")
    assert published(hub) == FILES
    assert commits_with_files(hub) == 1
    assert done.is_new and done.commit == repository(hub).head
    assert set(done.files) == set(FILES)
    assert repository(hub).commits[-1].title == "Publish it"
    again = publish(folder, TARGET, "Publish it")
    assert not again.is_new
    assert again.commit == done.commit
    assert commits_with_files(hub) == 1


def test_manifest_of_the_folder_stays_here(hub, folder):
    (folder / "manifest.json").write_text("{}")
    publish(folder, TARGET, "Publish")
    assert published(hub) == FILES


@pytest.mark.parametrize("action", ["refuse", "cut_upload", "lose_answer", "cut_answer"])
def test_a_connection_lost_once_anywhere_changes_nothing_about_the_end(hub, folder, action):
    count = num_requests(folder)
    assert count > 8
    for number in range(1, count + 1):
        with HubServer() as server, pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", server.url)
            patch.setenv("HF_TOKEN", server.token)
            server.fail(Fault(action, first=number))
            done = publish(folder, TARGET, "Publish")
            assert published(server) == FILES, number
            assert commits_with_files(server) == 1, number
            assert done.commit == repository(server).head


def test_a_hub_that_goes_away_leaves_the_old_state_or_the_new_one_and_a_later_push_completes(hub, folder):
    count = num_requests(folder)
    failed = 0
    for number in range(1, count + 1):
        with HubServer() as server, pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", server.url)
            patch.setenv("HF_TOKEN", server.token)
            server.fail(Fault("refuse", first=number, times=None))
            with pytest.raises(PublishingError, match="run the same command again"):
                publish(folder, TARGET, "Publish")
            failed += 1
            held = published(server) if f"models/{NAME}" in server.repos else {}
            assert held in ({}, FILES), number
            server.faults.clear()
            publish(folder, TARGET, "Publish")
            assert published(server) == FILES
            assert commits_with_files(server) == 1, number
    assert failed == count


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again_after_the_time_it_says(hub, folder, waits, status):
    hub.fail(Fault("answer", COMMIT, status=status, headers={"Retry-After": "7"}))
    publish(folder, TARGET, "Publish")
    assert 7 in waits
    assert commits_with_files(hub) == 1


def test_an_error_that_hides_a_commit_makes_no_second_one(hub, folder):
    hub.fail(Fault("answer", COMMIT, status=500, processed=True))
    assert publish(folder, TARGET, "Publish").is_new
    assert commits_with_files(hub) == 1


@pytest.mark.parametrize("match", [COMMIT, "PUT /storage/", "POST .*/preupload/", "GET .*/tree/"])
def test_a_hub_that_stays_busy_ends_in_an_error_in_bounded_time(hub, folder, waits, match):
    hub.fail(Fault("answer", match, status=503, times=None))
    with pytest.raises(PublishingError, match="busy"):
        publish(folder, TARGET, "Publish")
    assert 0 < sum(waits) < 300
    assert not published(hub)


def test_a_hub_that_asks_for_an_hour_is_not_waited_for(hub, folder, waits):
    hub.fail(Fault("answer", "POST .*/preupload/", status=429, headers={"Retry-After": "3600"}, times=None))
    with pytest.raises(PublishingError, match="3600 s"):
        publish(folder, TARGET, "Publish")
    assert sum(waits) < 60


def test_somebody_elses_commit_in_between_is_not_overwritten(hub, folder):
    hub.fail(Fault("push", files={"config.json": b"theirs"}))
    with pytest.raises(PublishingError, match="Somebody else"):
        publish(folder, TARGET, "Publish")
    assert published(hub) == {"config.json": b"theirs"}


def test_what_was_not_published_from_here_is_not_overwritten_until_it_was_seen(hub, folder):
    hub.add_repo(f"models/{NAME}", {"config.json": b"theirs"})
    head = repository(hub).head
    with pytest.raises(PublishingError, match=f"--parent_commit {head}"):
        publish(folder, TARGET, "Publish")
    assert published(hub) == {"config.json": b"theirs"}
    with pytest.raises(PublishingError, match="not published from here"):
        publish(folder, replace(TARGET, known_commit="0" * 40), "Publish")
    publish(folder, replace(TARGET, known_commit=head), "Publish")
    assert published(hub) == FILES


def test_files_of_the_last_push_that_are_gone_are_removed_and_others_stay(hub, folder):
    first = publish(folder, TARGET, "Publish")
    repository(hub).push({"notes.txt": b"by hand"})
    (folder / "images" / "samples.png").unlink()
    known = replace(TARGET, known_commit=repository(hub).head, known_files=tuple(first.files))
    publish(folder, known, "Publish")
    assert "images/samples.png" not in published(hub)
    assert published(hub)["notes.txt"] == b"by hand"


def test_what_arrived_damaged_is_not_reported_as_done(hub, folder):
    hub.fail(Fault("truncate", files={"config.json": b""}))
    with pytest.raises(PublishingError, match=r"other bytes.*config\.json"):
        publish(folder, TARGET, "Publish")
    publish(folder, replace(TARGET, known_commit=repository(hub).head), "Publish")
    assert published(hub) == FILES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b'{"key": "hf_' + b"a" * 34 + b'"}', "a token"),
        ("config.json", b'{"x": "canary-of-the-environment"}', "MY_API_KEY"),
        ("notes.txt", b"https://me:secret-word@example.org/", "address with a password"),
        ("training_args.bin", b"anything", "pickle"),
        ("optimizer.pt", b"anything", "pickle"),
    ],
)
def test_secrets_and_pickles_stay_here(hub, folder, monkeypatch, name, content, message):
    monkeypatch.setenv("MY_API_KEY", "canary-of-the-environment")
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        publish(folder, TARGET, "Publish")
    assert name in str(error.value)
    assert "canary" not in str(error.value) and "secret-word" not in str(error.value)
    assert not hub.requests


def test_the_token_in_use_is_found_in_weights_too(hub, folder):
    (folder / "model.safetensors").write_bytes(b"\0" * 99 + hub.token.encode() + b"\0")
    with pytest.raises(ValueError, match=r"model\.safetensors holds"):
        publish(folder, TARGET, "Publish")
    assert not hub.requests


def test_a_link_is_not_followed(hub, folder, tmp_path):
    (tmp_path / "outside").write_text("private")
    (folder / "link.txt").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="is a link"):
        publish(folder, TARGET, "Publish")


def test_privacy_of_a_new_repository_and_of_one_that_is_there(hub, folder):
    publish(folder, replace(TARGET, private=True), "Publish")
    assert repository(hub).private
    with pytest.raises(ValueError, match="exists and is private"):
        check_access(replace(TARGET, private=False))


@pytest.mark.parametrize("name", ["nobody", "a/b/c", "some one/x", ""])
def test_a_name_that_is_none_is_refused_before_any_request(hub, name):
    with pytest.raises(ValueError, match="OWNER/NAME"):
        check_access(Target(name))
    assert not hub.requests


def test_access_is_checked_beforehand(hub, monkeypatch):
    check_access(TARGET)
    assert f"models/{NAME}" in hub.repos
    with pytest.raises(PublishingError, match="refused"):
        check_access(Target("strangers/model"))
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrong" * 8)
    with pytest.raises(PublishingError, match="refused") as error:
        check_access(TARGET)
    assert "wrongwrong" not in str(error.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="logged in"):
        check_access(TARGET)


def test_a_family_is_one_collection(hub, folder):
    publish(folder, TARGET, "Publish")
    first = add_to_collection("Digits", TARGET)
    assert add_to_collection("Digits", TARGET) == first
    (collection,) = hub.collections.values()
    assert [(item["type"], item["id"]) for item in collection.items] == [("model", NAME)]
