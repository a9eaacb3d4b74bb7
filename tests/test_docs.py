"""The README says what the repository holds."""

import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_config

from hf_igpt import IGPTImageProcessor, ImageGPTForCausalImageModeling


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_tables_are_those_that_the_json_files_render():
    specification = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    tables = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tables)
    assert tables.render(README) == README, "run `python docs/tables.py`"


def test_results_name_no_folder_of_the_machine_they_were_made_on():
    files = sorted((ROOT / "docs" / "results").glob("*.json"))
    assert files
    for path in files:
        assert not re.search(r'"/(?:home|root|tmp|work|mnt|opt)\b|\.\./', path.read_text()), path.name


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_to_files(target):
    assert (ROOT / target).exists()


def test_commands_and_recipes_named_exist():
    from hf_igpt.arguments import shipped_recipes
    from hf_igpt.commands.main import COMMANDS

    commands = README.split("| command | what it does |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", commands, re.MULTILINE)) == set(COMMANDS)
    for name in re.findall(r"hf-igpt (?:pretrain|evaluate|sample) ([\w-]+)", README):
        assert name in shipped_recipes()
    for path in re.findall(r"(?:recipes|scripts|runs|tests|docs)/[\w./-]+\.(?:yaml|py|sh)", README):
        assert (ROOT / path).is_file(), path


def test_readme_commands_are_those_of_the_makefile_and_ci():
    makefile = (ROOT / "Makefile").read_text()
    for line in ("ruff check .", "ruff format --check .", "typos", "python -m pytest"):
        assert f"$(BIN)/{line}" in makefile
        assert f".venv/bin/{line}" in README
    assert "bash runs/digits.sh" in makefile
    assert "bash runs/digits.sh" in README
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_load_and_use_runs_on_a_checkpoint_folder(tmp_path, capsys):
    palette = np.random.default_rng(0).uniform(0, 255, (16, 3))
    IGPTImageProcessor(size=4, palette=palette).save_pretrained(tmp_path)
    ImageGPTForCausalImageModeling(tiny_config(vocab_size=17, image_size=4)).save_pretrained(tmp_path)
    block, *_ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(block.replace("outputs/digits/model", str(tmp_path)), names)
    assert names["tokens"].shape == (4, 16)
    assert names["features"].shape == (4, names["model"].config.hidden_size)
    assert float(re.search(r"[\d.]+", capsys.readouterr().out)[0]) == pytest.approx(math.log(16), abs=1e-3)


def test_model_cards_are_those_that_the_json_files_render():
    specification = importlib.util.spec_from_file_location("cards", ROOT / "docs" / "cards.py")
    cards = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(cards)
    for recipe in cards.RELEASED:
        text = (cards.CARDS / f"{recipe}.md").read_text()
        assert str(cards.model_card(cards.facts(recipe))) == text, "run `python docs/cards.py`"
        for target in re.findall(r"\]\((\.\./[^)]+)\)", text):
            assert (cards.CARDS / target).is_file(), target
