"""The site builds without a warning and without a network, and has every page."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from docs_scripts import DOCS, tables


pytest.importorskip("sphinx", reason="the site needs the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(folder / "html")]
    ended = subprocess.run([*build, "-d", str(folder / "cache")], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "html"


def test_every_page_and_notebook_is_there_and_can_be_reached(site):
    sources = [*tables.pages(), *(DOCS / "notebooks").glob("*.ipynb"), *DOCS.rglob("*.rst")]
    named = {path.relative_to(DOCS).with_suffix(".html") for path in sources if DOCS in path.parents}
    named.remove(Path("README.html"))
    first = (site / "index.html").read_text()
    for name in named:
        assert (site / name).is_file(), name
        assert name == Path("index.html") or name.parent == Path("api") or f'href="{name}"' in first, name


def test_readers_fetch_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        fetched = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)"', text)
        fetched += re.findall(r'<link[^>]*rel="(?:stylesheet|preload|icon)"[^>]*href="([^"]+)"', text)
        assert not [address for address in fetched if re.match(r"(?:https?:)?//", address)], page


def test_pictures_and_docstrings_are_in_it(site):
    assert 'alt="Eight test digits' in (site / "concepts/likelihood.html").read_text()
    assert "image/png" in (site / "notebooks/quick-start.html").read_text() or list((site / "_images").glob("*.png"))
    assert "pooled_features" in (site / "api/models.html").read_text()
    assert "every option" in (site / "index.html").read_text().lower()
