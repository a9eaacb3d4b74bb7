"""The README and the pages in docs say what the repository holds."""

import re

import pytest
from docs_scripts import load, tables


ROOT = tables.ROOT
README = tables.README.read_text()
PAGES = {str(page.relative_to(ROOT)): page for page in tables.pages()}
LINKS = [(name, target) for name, page in PAGES.items() for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]


@pytest.mark.parametrize("name", PAGES)
def test_tables_and_figures_are_those_that_the_json_files_and_options_render(name):
    text = PAGES[name].read_text()
    assert tables.render(text, PAGES[name]) == text, "run `python docs/tables.py`"
    marked = {match["name"] for match in tables.MARKER.finditer(text)}
    assert marked <= tables.MARKED.keys()
    # A comment that begins a line ends the paragraph: what follows it would be no Markdown.
    assert not re.search(r"^<!-- [\w-]+ -->.", text, re.MULTILINE)
    assert name != "docs/commands.md" or "commands" in marked


def test_all_that_can_be_rendered_stands_on_a_page():
    marked = {match["name"] for page in PAGES.values() for match in tables.MARKER.finditer(page.read_text())}
    assert marked == tables.MARKED.keys()


@pytest.mark.parametrize("name", PAGES)
def test_pictures_have_a_text_in_their_place(name):
    assert all(text.strip() for text in re.findall(r"!\[([^\]]*)\]", PAGES[name].read_text()))


def test_every_page_is_in_the_list():
    listed = {(tables.ROOT / "docs" / target).resolve() for name, target in LINKS if name == "docs/README.md"}
    pages = {page for name, page in PAGES.items() if name not in ("README.md", "docs/README.md")}
    assert pages | set((ROOT / "docs" / "notebooks").glob("*.ipynb")) <= listed


def test_results_name_no_folder_of_the_machine_they_were_made_on():
    files = sorted((ROOT / "docs" / "results").glob("*.json"))
    assert files
    for path in files:
        assert not re.search(r'"/(?:home|root|tmp|work|mnt|opt)\b|\.\./', path.read_text()), path.name


@pytest.mark.parametrize(("name", "target"), sorted(set(LINKS)))
def test_links_lead_to_files(name, target):
    assert (PAGES[name].parent / target).exists()


def test_the_readme_lists_the_commands():
    from hf_igpt.commands.main import COMMANDS

    commands = README.split("| command | what it does |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", commands, re.MULTILINE)) == set(COMMANDS)


def test_readme_commands_are_those_of_the_makefile_and_ci():
    makefile = (ROOT / "Makefile").read_text()
    for line in ("ruff check .", "ruff format --check .", "typos", "python -m pytest"):
        assert f"$(BIN)/{line}" in makefile
        assert f".venv/bin/{line}" in README
    assert "bash runs/digits.sh" in makefile
    assert "bash runs/digits.sh" in README
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_model_cards_are_those_that_the_json_files_render():
    cards = load("cards")
    for recipe in cards.RELEASED:
        text = (cards.CARDS / f"{recipe}.md").read_text()
        assert str(cards.model_card(cards.facts(recipe))) == text, "run `python docs/cards.py`"
        for target in re.findall(r"\]\((\.\./[^)]+)\)", text):
            assert (cards.CARDS / target).is_file(), target
