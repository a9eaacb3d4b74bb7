"""Numbers in README and docs come from a results JSON, or are said to have none."""

import json
import re

import pytest
from docs_scripts import tables


ROOT = tables.ROOT
RESULTS = sorted((ROOT / "docs" / "results").glob("*.json"))
# Options have their units, and nothing that was measured.
PAGES = {str(page.relative_to(ROOT)): page for page in tables.pages() if page.name != "commands.md"}
UNITS = "nats|bits/dim|dB|times|ms|seconds|minutes|hours|points|images/s|GFLOP/s|GB|MB"
QUANTITY = re.compile(rf"(?<![\w.])\d[\d,]*(?:\.\d+)? ?(?:%|(?:{UNITS})\b)")
SOURCE = re.compile(r"\.json\)|no JSON")
# Choices, the paper's, and facts about other programs, not measurements of ours.
STATED = (
    "The paper's BERT models hide 15 % of the pixels",
    "The paper hides 15 % of the pixels.",
    "its best ImageNet number, 69.0 %, on codes",  # the paper's
    "in under 10 minutes on 2 CPU cores",  # what `make digits-probes` is kept to
    "5 nats and more",  # a scale of colours
    "15 % of the pixels hidden; with 60 % hidden",  # a picture's text
    "those named after the paper's models keep its 15 %",
    "torchrun waits 30 seconds",
    "in pieces of at most 8 minutes",
    "weights of up to 1 GB",
    "sees each of 1,294 images 25 times",  # epochs
)


def blocks(text: str) -> list[str]:
    """What is written by hand, in paragraphs; a table belongs to the words before it."""
    text = tables.MARKER.sub("", text)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    return re.sub(r"\n\n(?=\|)", "\n", text).split("\n\n")


def without_source(text: str) -> list[str]:
    found = []
    for block in blocks(text):
        words = " ".join(block.split())
        for stated in STATED:
            words = words.replace(stated, "")
        if QUANTITY.search(words) and not SOURCE.search(words):
            found.append(words)
    return found


@pytest.mark.parametrize("name", PAGES)
def test_what_was_measured_has_its_json(name):
    assert without_source(PAGES[name].read_text()) == []


def test_a_number_without_a_source_is_found():
    shown = "<!-- results -->\n| 4 % |\n<!-- /results -->"
    text = f"# Speed\n\nOurs is 3.5 times faster.\n\n{shown}\n\n`7 %`\n\nLosses:\n\n| a |\n|---|\n| 5 nats |\n"
    assert without_source(text) == ["Ours is 3.5 times faster.", "Losses: | a | |---| | 5 nats |"]
    assert without_source("It takes 20 ms ([JSON](results/a.json)).\n\nNothing here.") == []


def test_every_stated_number_is_still_stated():
    text = " ".join(" ".join(page.read_text() for page in PAGES.values()).split())
    assert [stated for stated in STATED if stated not in text] == []


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_how_it_was_made(path):
    results = json.loads(path.read_text())
    for field in ("command", "created", "versions", "hardware"):
        assert results[field], field
    assert re.fullmatch(r"[0-9a-f]{40}", results["commit"]["sha"])
    assert results["command"].split()[0] in ("hf-igpt", "python", "accelerate")


def test_every_result_is_shown_or_named():
    text = "".join(page.read_text() for page in tables.pages())
    text += "".join(path.read_text() for path in (ROOT / "docs").glob("*.py"))
    text += "".join(path.read_text() for path in (ROOT / "src/hf_igpt/recipes").glob("*.yaml"))
    missing = [stem for stem in (path.stem for path in RESULTS) if not re.search(rf"[/\"]{stem}(?:\.json|\")", text)]
    assert missing == []
