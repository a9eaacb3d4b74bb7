"""The dependency headers of `scripts/`, which `uv run` and Jobs on the Hub read, say what pyproject.toml says."""

import re
import tomllib
from pathlib import Path

import pytest

from hf_igpt.commands.main import COMMANDS
from hf_igpt.commands.running import _EXTRAS


ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEFAULT_TIMEOUT_MINUTES = 30  # of a Job


def header(script: Path) -> dict:
    block = re.match(r"# /// script\n((?:#.*\n)+?)# ///\n", script.read_text())
    assert block, script
    return tomllib.loads("".join(line[2:] if line != "#\n" else "\n" for line in block[1].splitlines(keepends=True)))


def test_every_command_but_env_is_a_script():
    assert {script.stem for script in SCRIPTS} == COMMANDS.keys() - {"env"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_asks_for_this_package_with_extras_that_exist(script):
    found = header(script)
    assert found["requires-python"] == PROJECT["requires-python"]
    (dependency,) = found["dependencies"]
    name, extras = re.fullmatch(r"([\w-]+)\[([\w,]+)\]", dependency).groups()
    assert name == PROJECT["name"]
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    needed = {"convert_checkpoint": "tensorflow", "demo": "demo"}.get(script.stem, "train")
    assert needed in extras.split(",")
    assert set(_EXTRAS.values()) <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_job_gets_a_machine_a_token_and_more_time_than_the_default(script):
    jobs = header(script)["tool"]["hf-jobs"]
    assert jobs.keys() == {"flavor", "timeout", "secrets"}
    number, unit = re.fullmatch(r"(\d+)([mh])", jobs["timeout"]).groups()
    assert int(number) * {"m": 1, "h": 60}[unit] > DEFAULT_TIMEOUT_MINUTES
    assert jobs["secrets"] == ["HF_TOKEN"]
    is_launched = COMMANDS[script.stem][1]
    assert jobs["flavor"].startswith("a") == (is_launched or script.stem == "sample")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_its_docstring_names_itself(script):
    text = script.read_text()
    how = "accelerate launch" if COMMANDS[script.stem][1] else "python"
    for command in (how, "uv run", "hf jobs uv run"):
        assert f"\n{command} scripts/{script.name} " in text
