"""The wheel has everything the package needs, since it is all that most users ever see."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> dict[str, bytes]:
    """The files of a wheel built from a copy, so that the build leaves nothing in the tree."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(target)!r})"
    ended = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (file,) = target.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_modules_recipes_and_types_are_in_it(wheel):
    package = ROOT / "src" / "hf_igpt"
    files = [path for pattern in ("*.py", "*.yaml", "*.md", "py.typed") for path in package.rglob(pattern)]
    expected = {f"hf_igpt/{path.relative_to(package).as_posix()}" for path in files}
    assert any(name.endswith("digits.yaml") for name in expected) and "hf_igpt/py.typed" in expected
    assert expected - wheel.keys() == set()
    assert [name for name in wheel if not name.startswith(("hf_igpt/", "hf_igpt-"))] == []


def test_its_console_script_and_licence(wheel):
    content = {name.split("/", 1)[1]: data.decode() for name, data in wheel.items() if ".dist-info/" in name}
    assert "hf-igpt = hf_igpt.commands.main:main" in content["entry_points.txt"]
    assert "Apache License" in content["licenses/LICENSE"]
    assert "License-Expression: Apache-2.0" in content["METADATA"]
