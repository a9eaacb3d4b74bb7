import importlib.util
import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_igpt import results
from hf_igpt.results import print_results, read_results, write_results


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_results(
        folder,
        command=["hf-igpt", "pretrain", "digits", "--hub_token", "canary", "--name", "a b"],
        metrics={"nats_per_token": np.float32(0.5), "curve": [1.0, 0.5], "skipped": None},
        seeds={"seed": 1},
        arguments={"hub_token": "canary", "output_dir": folder},
        wall_seconds=1.5,
        skipped_rows=[3, 4],
    )
    return folder / "results.json"


def test_what_is_written_is_read(written):
    content = read_results(written)
    assert content == read_results(written.parent) == json.loads(written.read_text())
    assert content["command"] == "hf-igpt pretrain digits --hub_token *** --name 'a b'"
    assert content["metrics"] == {"nats_per_token": 0.5, "curve": [1.0, 0.5], "skipped": None}
    assert content["seeds"] == {"seed": 1} and content["wall_seconds"] == 1.5 and content["skipped_rows"] == [3, 4]
    assert content["arguments"] == {"hub_token": "***", "output_dir": str(written.parent)}
    assert content["hardware"]["cores"] >= 1 and content["hardware"]["memory_bytes"] > 2**28
    assert {"python", "hf_igpt", "transformers", "torch"} <= content["versions"].keys()
    assert "canary" not in written.read_text()


def test_command_is_this_process_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["prog", "--token=canary"])
    assert write_results(tmp_path / "other.json", metrics={})["command"] == "prog --token=***"
    assert read_results(tmp_path / "other.json")["metrics"] == {}


def test_printed_line_is_what_was_written(written, capsys):
    print_results(read_results(written))
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and json.loads(out) == read_results(written)


@pytest.mark.parametrize("value", [math.nan, -math.inf, np.array([0.0, math.nan]), object()])
def test_metric_that_is_no_number_is_refused_with_its_name(tmp_path, value):
    with pytest.raises(ValueError, match=r"`results\.metrics\.test\.loss"):
        write_results(tmp_path, metrics={"test": {"loss": value}})
    assert list(tmp_path.iterdir()) == []


def test_extra_field_may_not_replace_one_of_ours(tmp_path):
    with pytest.raises(ValueError, match="`versions` is a field"):
        write_results(tmp_path, metrics={}, versions={})


@pytest.mark.parametrize("field", list(results._FIELDS))
def test_missing_or_mistyped_field_is_named(written, tmp_path, field):
    content = read_results(written)
    for changed in (
        {**content, field: [1]},
        {**content, field: True},
        {k: v for k, v in content.items() if k != field},
    ):
        (tmp_path / "results.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=f"`{field}`"):
            read_results(tmp_path)


@pytest.mark.parametrize(("field", "value"), [("schema", "other"), ("schema_version", 2)])
def test_other_version_is_refused(written, tmp_path, field, value):
    (tmp_path / "results.json").write_text(json.dumps(read_results(written) | {field: value}))
    with pytest.raises(ValueError, match=f"`{field}` .* must be .* got {value!r}"):
        read_results(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"metrics": NaN}', "{" * 100_000])
def test_what_is_no_results_file_is_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json"):
        read_results(tmp_path)


@settings(max_examples=300, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), insert=st.binary(max_size=3), removed=st.integers(0, 3))
def test_edited_file_is_refused_or_still_has_the_schema(written, place, insert, removed):
    data = written.read_bytes()
    at = int(place * len(data))
    edited = written.with_name("edited.json")
    edited.write_bytes(data[:at] + insert + data[at + removed :])
    try:
        content = read_results(edited)
    except ValueError as error:
        assert "edited.json" in str(error)
    else:
        assert results._FIELDS.keys() <= content.keys() and isinstance(content["metrics"], dict)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


def test_commit_is_that_of_the_source_and_of_nobody_elses_repository(tmp_path):
    """A copy of the module in a repository: tracked, changed, and merely lying inside (an installed wheel)."""
    source = tmp_path / "src" / "results.py"
    source.parent.mkdir()
    shutil.copy(results.__file__, source)
    spec = importlib.util.spec_from_file_location("copied_results", source)
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    git(tmp_path, "init")
    (tmp_path / "other").write_text("x")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-m", "first")
    assert copied.git_commit() is None
    git(tmp_path, "add", "src/results.py")
    git(tmp_path, "commit", "-m", "second")
    sha = git(tmp_path, "rev-parse", "HEAD").strip()
    assert copied.git_commit() == {"sha": sha, "dirty": False}
    (tmp_path / "other").write_text("y")
    assert copied.git_commit() == {"sha": sha, "dirty": True}
