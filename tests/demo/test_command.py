"""What `hf-igpt demo` shows when, and the folder that is a Space."""

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from packaging.requirements import Requirement
from PIL import Image
from tiny_demo import ACCURACIES

from hf_igpt.commands import demo
from hf_igpt.demo.inputs import MAX_UPLOAD_PIXELS
from hf_igpt.demo.serving import limit_pixels
from hf_igpt.weights import weights_digest


ROOT = Path(__file__).parents[2]
APP = ROOT / "app"


def test_digits_are_trained_only_where_they_are_not_there(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    commands = []

    def train(command, stdout):
        assert stdout is sys.stderr
        commands.append(command[1:])
        Path(command[-1], "model").mkdir(parents=True)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", train)
    caplog.set_level("INFO")
    assert demo._digits() == demo._digits() == "outputs/digits/model"
    assert commands == [["-m", "hf_igpt.commands.main", "pretrain", "digits", "--output_dir", "outputs/digits"]]
    assert "training it, about 3 minutes on 2 cores" in caplog.text


def test_a_training_that_fails_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    with pytest.raises(ValueError, match="could not be trained, see above: give a checkpoint with --model"):
        demo._digits()


def test_probes_of_these_weights_from_beside_and_from_the_hub(checkpoints, opened, tmp_path, monkeypatch):
    model = opened["causal"].model
    (results,) = opened["causal"].probes
    assert [layer["test_accuracy"] for layer in results["metrics"]["layers"]] == list(ACCURACIES)
    (tmp_path / "results").mkdir()
    shutil.copy(checkpoints["causal"].parent / "probe/results.json", tmp_path / "results/probe.json")
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, allow_patterns: asked.append((name, allow_patterns)) or str(tmp_path),
    )
    assert demo._probes("someone/igpt", weights_digest(model)) == [results]
    assert asked == [("someone/igpt", ["results/*.json"])]
    assert demo._probes("someone/igpt", "0" * 64) == []


def test_damaged_results_keep_nobody_from_the_demo(checkpoints, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(checkpoints["causal"].parent, folder)
    (folder / "probe/results.json").write_text("{")
    opened = demo.open_checkpoint(str(folder / "model"), "cpu")
    assert opened.probes == [] and opened.tokens is not None
    assert "No results of a probe" in caplog.text


def test_the_process_refuses_images_with_too_many_pixels(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    limit_pixels()
    assert Image.MAX_IMAGE_PIXELS * 2 == MAX_UPLOAD_PIXELS


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, []), ("  ", []), ("a/b", ["--model", "a/b"]), ("a/b c/d", ["--model", "a/b", "c/d"])],
)
def test_the_space_shows_what_its_variable_names(monkeypatch, value, expected):
    monkeypatch.delenv("IGPT_CHECKPOINTS", raising=False)
    if value is not None:
        monkeypatch.setenv("IGPT_CHECKPOINTS", value)
    given = []
    monkeypatch.setattr(demo, "main", given.append)
    runpy.run_path(str(APP / "app.py"), run_name="__main__")
    assert given == [expected]


def test_the_space_says_what_it_needs():
    header = re.match(r"---\n(.*?)\n---\n", (APP / "README.md").read_text(), re.DOTALL)[1]
    fields = dict(line.split(": ", 1) for line in header.splitlines())
    assert fields["sdk"] == "gradio" and (APP / fields["app_file"]).is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert fields["license"] == project["license"].lower()
    assert fields["python_version"].strip('"') in project["requires-python"]
    assert len(fields["short_description"]) <= 60  # the Hub refuses longer ones
    wanted = next(Requirement(text) for text in project["optional-dependencies"]["demo"] if "gradio" in text)
    assert fields["sdk_version"] in wanted.specifier and version("gradio") in wanted.specifier
    assert (APP / "requirements.txt").read_text() == "hf-igpt[demo]\n"
    assert "IGPT_CHECKPOINTS" in (APP / "README.md").read_text()
