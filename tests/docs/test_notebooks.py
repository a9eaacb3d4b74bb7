"""The notebooks run from top to bottom, and what is stored of them is small and up to date."""

import os
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
from docs_scripts import load


notebooks = load("notebooks")
NAMES = [path.stem for path in notebooks.NOTEBOOKS]
MAX_BYTES = 300_000


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Each notebook by its name, executed in an empty folder of its own; two at once."""
    folders = [tmp_path_factory.mktemp(name) for name in NAMES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        with ThreadPoolExecutor(max_workers=2) as pool:
            sources = [nbformat.read(path, as_version=4) for path in notebooks.NOTEBOOKS]
            return dict(zip(NAMES, pool.map(notebooks.execute, sources, folders), strict=True))


def output_kinds(notebook) -> list[list[str]]:
    """What each cell shows: text, pictures and so on."""
    return [
        [next(iter(sorted(output.get("data", {output.output_type: None}))), "") for output in cell.get("outputs", [])]
        for cell in notebook.cells
    ]


def test_which_notebooks_there_are():
    assert NAMES == ["own-images", "probe-and-fine-tune", "quick-start"]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, executed):
    assert all(cell.execution_count for cell in executed[name].cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=NAMES)
def test_what_is_stored_is_small_and_has_its_outputs(path, executed):
    assert path.stat().st_size < MAX_BYTES
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)
    kinds = output_kinds(stored)
    assert "image/png" in str(kinds)
    assert kinds == output_kinds(notebooks.tidy(executed[path.stem]))


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=NAMES)
def test_links_to_hosted_services_are_those_of_the_address_in_pyproject(path):
    assert nbformat.read(path, as_version=4).cells[0].source == notebooks.with_links(path).cells[0].source


def test_links_once_there_is_an_address(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[project]\nurls = {Repository = "https://github.com/someone/igpt"}\n')
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    links = notebooks.hosted_links(tmp_path / "docs" / "notebooks" / "quick-start.ipynb")
    page = "someone/igpt/blob/main/docs/notebooks/quick-start.ipynb"
    assert f"(https://colab.research.google.com/github/{page})" in links
    assert f"(https://kaggle.com/kernels/welcome?src=https://github.com/{page})" in links
    assert f"(https://studiolab.sagemaker.aws/import/github/{page})" in links
