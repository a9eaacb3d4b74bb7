"""Every block of code in the README and in docs runs, or says why it doesn't and is checked for what it names."""

import ast
import re

import datasets
import numpy as np
import pytest
from code_blocks import (
    ROOT,
    blocks_of,
    check_command,
    check_own,
    code_spans,
    commands_of,
    options,
    prose_of,
)
from docs_scripts import tables
from PIL import Image


PAGES = tables.pages()
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LANGUAGES = ("bash", "python", "text")
# The commands run as they stand there, but for the size of models and the number of steps.
SHORTER = {
    "pretrain": "--max_steps 2 --hidden_size 24 --num_hidden_layers 2 --num_attention_heads 2 --total_batch_size 8 "
    "--eval_steps 2 --save_steps 2 --sample_steps 0 --report_to none --cpu_threads 1",
    "finetune": "--max_steps 2 --total_batch_size 8 --eval_steps 2 --report_to none --cpu_threads 1",
    "evaluate": "--cpu_threads 1",
    "probe": "--cpu_threads 1",
    "sample": "--cpu_threads 1",
}


def shortened(words: list[str]) -> list[str]:
    command, *rest = words
    return [command, *rest, *SHORTER.get(command, "").split()]


@pytest.fixture(scope="session")
def workspace(run, tmp_path_factory):
    """A folder as a reader has it who has gone through the first page: a digit, a hole, images, the digits models."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("checkpoints", "recipes", "scripts", "runs", "docs"):
        (folder / name).symlink_to(ROOT / name)
    random = np.random.default_rng(0)
    hole = np.zeros((8, 8), dtype=np.uint8)
    hole[3:6, 3:6] = 255
    Image.fromarray(hole).save(folder / "hole.png")
    Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "digit.png")
    for kind in ("cats", "dogs"):
        (folder / "path/to/images" / kind).mkdir(parents=True)
        for number in range(30):
            # 27 colours, so that palettes are fitted in no time.
            pixels = random.integers(0, 3, (16, 16, 3), dtype=np.uint8) * 120
            Image.fromarray(pixels).save(folder / "path/to/images" / kind / f"{number:03}.png")
    for recipe in ("digits", "digits-masked"):
        ended = run(*shortened(["pretrain", recipe]), cwd=folder)
        assert ended.status == 0, ended.stderr
    return folder


@pytest.fixture
def in_root(monkeypatch):
    """Recipes and scripts are named as seen from there."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_block_runs_or_says_why_not(page, run, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", workspace / "cache")
    names = {"__name__": "reader"}
    for block in blocks_of(page):
        assert block.language in LANGUAGES, f"{block}: name one of the languages {LANGUAGES}"
        if block.language == "python":
            tree = ast.parse(block.code, str(block))
            if block.not_run is not None:
                # What it imports exists, and later blocks may use it.
                tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(tree, str(block), "exec"), names)
        elif block.language == "bash" and block.not_run is None:
            for words in commands_of(block.code):
                assert words[0] == "hf-igpt", f"{block}: {words[0]} isn't run here, say why before the block"
                ended = run(*shortened(words[1:]), cwd=workspace)
                assert ended.status == 0, f"{block}: {ended.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_options_and_files_named_exist(page, in_root):
    for block in blocks_of(page):
        if block.language == "bash":
            for words in commands_of(block.code):
                check_command(words)
    spans, flags = code_spans(page), options()
    for span in spans:
        words = span.split()
        if words[0] == "hf-igpt" and "COMMAND" not in words and len(words) > 1:
            check_own(*words[1:])
        elif words[0] == "accelerate":
            # A span is a whole command, or the launcher's options alone.
            is_whole = "-m" in words or any(word.startswith("scripts/") for word in words)
            check_command(words if is_whole else [*words, "scripts/pretrain.py"])
        else:
            assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", span)) <= flags, span
    folders = "app|benchmarks|checkpoints|docs|model_cards|recipes|runs|scripts|src|tests"
    for name in re.findall(rf"(?<![\w./-])(?:{folders})/[\w./*-]*\w", prose_of(page)):
        assert (page.parent / name).exists() or list(ROOT.glob(name)), name


def test_what_would_be_found(tmp_path, in_root):
    """The tests above fail where they should."""
    wrong = ("hf-igpt pretrain digit", "hf-igpt sample --warmth 1", "hf-igpt draw", "make everything")
    wrong += ("hf-igpt --config_file none pretrain digits", "hf-igpt --processes 2 pretrain digits")
    wrong += (
        "accelerate launch scripts/none.py",
        "python docs/none.py",
        "curl address",
        "bash runs/none.sh",
        'pip install ".[none]"',
    )
    for line in wrong:
        with pytest.raises((AssertionError, ValueError, SystemExit)):
            check_command(next(commands_of(line)))
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs a GPU -->\n```bash\nhf-igpt env\n```\n\n```python\n1\n```\n")
    found = [(block.language, block.not_run) for block in blocks_of(page)]
    assert found == [("bash", "needs a GPU"), ("python", None)]
