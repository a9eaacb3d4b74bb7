"""Executes the notebooks and writes them back with their outputs and their links to hosted services.

    python docs/notebooks.py

They run in a folder that is removed afterwards, each in well under a minute on one core.
"""

import re
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient


ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# Of the address on GitHub that `Repository` names in pyproject.toml's `project.urls`, the only place to enter it.
HOSTS = {
    "Colab": "https://colab.research.google.com/github/{repository}/blob/main/{path}",
    "Kaggle": "https://kaggle.com/kernels/welcome?src=https://github.com/{repository}/blob/main/{path}",
    "Studio Lab": "https://studiolab.sagemaker.aws/import/github/{repository}/blob/main/{path}",
}
LINKS = re.compile(r"<!-- hosts -->.*?<!-- /hosts -->", re.DOTALL)


def hosted_links(path: Path) -> str:
    """Links that open a notebook on a hosted service, or that there are none while the repository has no address."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)/?", urls.get("Repository", ""))
    if found is None:
        return (
            "The repository has no public address yet, so there are no links to Colab, Kaggle or Studio Lab. To run "
            "it on your machine, [install the package](../start.md) first."
        )
    where = {"repository": found[1], "path": path.relative_to(ROOT).as_posix()}
    links = (f"[{host}]({address.format(**where)})" for host, address in HOSTS.items())
    return f"Open it on {', '.join(links)}. There, install first: `%pip install 'hf-igpt[train] @ git+{found[0]}'`."


def with_links(path: Path) -> nbformat.NotebookNode:
    """A notebook as it stands, its links filled in."""
    notebook = nbformat.read(path, as_version=4)
    marked = f"<!-- hosts -->\n{hosted_links(path)}\n<!-- /hosts -->"
    notebook.cells[0].source, count = LINKS.subn(lambda _: marked, notebook.cells[0].source)
    if count != 1:
        raise ValueError(
            f"The first cell of {path.name} must have one place for links, `<!-- hosts -->`, got {count}."
        )
    return notebook


def execute(notebook: nbformat.NotebookNode, folder: str | Path, timeout: int = 600) -> nbformat.NotebookNode:
    """Executes a notebook in a folder and returns it; its first error is raised."""
    options = {"kernel_name": "python3", "record_timing": False, "resources": {"metadata": {"path": str(folder)}}}
    # A busy machine takes longer than the minute that nbclient gives a kernel to start.
    NotebookClient(notebook, timeout=timeout, startup_timeout=timeout, **options).execute()
    return notebook


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what differs from machine to machine: progress bars and logs on stderr, versions."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
    return notebook


def _is_noise(output: Any) -> bool:
    return output.output_type == "stream" and output.name == "stderr"


if __name__ == "__main__":
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(tidy(execute(with_links(path), folder)), path)
        print(f"{path.name} executed")
