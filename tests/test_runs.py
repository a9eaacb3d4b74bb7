"""Scripts in `runs`: what they start exists, with options that the commands take; nothing is started here."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_igpt.commands.main import COMMANDS


ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "runs").glob("*.sh"))
RECORDER = """#!/usr/bin/env python3
import json, os, sys, time
with open(os.environ["STARTED"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if sys.argv[1] == os.environ.get("SLOW"):
    time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Runs a script with a recorder in the place of what it starts: exit code, and the recorded command lines."""
    (tmp_path / "bin").mkdir()
    for name in ("hf-igpt", "python"):
        (tmp_path / "bin" / name).write_text(RECORDER)
        (tmp_path / "bin" / name).chmod(0o755)
    record = tmp_path / "started.jsonl"

    def run(script: Path, *arguments: str, **environment: str) -> tuple[int, list[list[str]]]:
        record.write_text("")
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        settings = {"PATH": path, "OUTPUT": str(tmp_path / "output"), "STARTED": str(record)}
        ended = subprocess.run(["bash", script, *arguments], env=os.environ | settings | environment, timeout=120)
        return ended.returncode, [json.loads(line) for line in record.read_text().splitlines()]

    return run


class Parsed(Exception):
    """A script has read its options."""


def parse_only(script: Path, arguments: list[str], monkeypatch) -> None:
    """Reads a script's options, and starts nothing. Raises SystemExit where it doesn't take them."""

    def stop(parser, *_):
        parse(parser)
        raise Parsed

    parse = argparse.ArgumentParser.parse_args
    with monkeypatch.context() as patch:
        patch.syspath_prepend(script.parent)
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [str(script), *arguments])
        with pytest.raises(Parsed):
            importlib.import_module(script.stem).main()


def test_a_wrong_option_of_a_script_is_found(monkeypatch):
    with pytest.raises(SystemExit):
        parse_only(ROOT / "benchmarks" / "options.py", ["--results", "a", "--probe_folders", "b"], monkeypatch)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_everything_that_is_started_exists_and_takes_its_options(script, start, monkeypatch):
    status, started = start(script)
    assert status == 0 and started
    for program, first, *rest in started:
        if program == "python":
            if first != "-":
                parse_only(ROOT / first, rest, monkeypatch)
        else:
            module = importlib.import_module(f"hf_igpt.commands.{first}")
            assert first in COMMANDS
            module.parse(rest)


@pytest.mark.parametrize("recipe", ["cifar10", "cifar10-best", "cifar10-masked", "cifar10-rgb"])
def test_the_gpu_run_takes_a_recipe_and_a_copy_of_the_images(recipe, start, tmp_path):
    _, started = start(ROOT / "runs" / "cifar10.sh", recipe, DATASET="images", DATASET_100="images100")
    assert started[0][1:5] == ["pretrain", recipe, "--dataset_name", "images"]
    assert all(str(tmp_path / "output") in " ".join(line) for line in started)
    assert {line[line.index("--dataset_name") + 1] for line in started if "--dataset_name" in line} == {
        "images",
        "images100",
    }


def test_the_gpu_run_stops_in_time_and_starts_nothing_after_it(start, tmp_path):
    script = (ROOT / "runs" / "cifar10.sh").read_text()
    assert script.count("60 * minutes") == 1
    path = tmp_path / "runs" / "seconds-for-minutes.sh"
    path.parent.mkdir()
    path.write_text(script.replace("60 * minutes", "8 * minutes"))
    began = time.monotonic()
    status, started = start(path, MINUTES="1", SLOW="probe")
    assert status == 124 and time.monotonic() - began < 30
    assert [line[1] for line in started] == ["pretrain", "evaluate", "sample", "probe"]
    assert start(path, MINUTES="0") == (124, [])
