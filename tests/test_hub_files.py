"""Files that travel with a checkpoint import only what is there; importing the package does nothing else."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_igpt


SOURCE = Path(hf_igpt.__file__).parent
HUB_FILES = sorted(SOURCE.glob("*_igpt*.py"))
ALLOWED = {"numpy", "torch", "PIL", "transformers", "huggingface_hub", "safetensors"} | sys.stdlib_module_names
# What transformers' uploader looks for, docstrings included.
FOLLOWED = re.compile(r"^\s*(?:from\s+(\.\S*)\s+import|import\s+(\.\S*))", re.MULTILINE)
NAMED = re.compile(r"^\s*(?:import|from)\s+(\S+)", re.MULTILINE)


def imports_of(path: Path) -> list[tuple[int, str, list[str]]]:
    """(dots, module, names) of every import, in functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", [alias.name for alias in node.names]))
    return found


def test_there_are_hub_files():
    names = {path.name for path in HUB_FILES}
    assert {"configuration_igpt.py", "modeling_igpt.py", "modeling_igpt_vqvae.py"} <= names


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.name)
def test_hub_files_import_only_libraries_and_each_other_with_one_dot(path):
    siblings = {other.stem for other in HUB_FILES}
    for dots, module, _ in imports_of(path):
        if dots:
            assert dots == 1, f"{'.' * dots}{module} is not uploaded"
            assert module in siblings, f".{module} is no hub file"
        else:
            assert module.split(".")[0] in ALLOWED, f"{module} is not there where a checkpoint is loaded"


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.name)
def test_the_uploaders_search_finds_exactly_the_real_imports(path):
    """It searches text, so that a docstring line like an import would be followed or asked for as a requirement."""
    text = path.read_text()
    relative = {f".{module}" for dots, module, _ in imports_of(path) if dots}
    assert {first or second for first, second in FOLLOWED.findall(text)} == relative
    absolute = {module for dots, module, _ in imports_of(path) if not dots}
    assert {name for name in NAMED.findall(text) if not name.startswith(".")} == absolute


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.name)
def test_hub_files_have_nothing_at_import_but_definitions(path):
    for node in ast.parse(path.read_text()).body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        definitions = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.Assign, ast.AnnAssign)
        assert is_text or isinstance(node, definitions), f"line {node.lineno}"


SIDE_EFFECTS = """
import logging, os, random, sys, warnings
import numpy, torch, transformers
from transformers import GenerationMixin, PreTrainedModel  # and what comes with them

def state():
    root, library = logging.getLogger(), logging.getLogger("transformers")
    return dict(
        root=(root.level, list(root.handlers)),
        library=(library.level, list(library.handlers), transformers.logging.get_verbosity()),
        filters=list(warnings.filters),
        environment=dict(os.environ),
        dtype=torch.get_default_dtype(),
        threads=torch.get_num_threads(),
        grad=torch.is_grad_enabled(),
        precision=torch.get_float32_matmul_precision(),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        generators=(torch.get_rng_state().tolist(), str(numpy.random.get_state()), random.getstate()),
        hook=sys.excepthook,
        extras={"sklearn", "datasets", "matplotlib", "accelerate", "pandas", "scipy", "yaml"} & set(sys.modules),
    )

before = state()
import hf_igpt
after = state()
for name in before:
    assert before[name] == after[name], (name, before[name], after[name])
"""


def test_importing_the_package_has_no_side_effects_imports_no_extra_and_prints_nothing():
    """Extras that transformers imports itself where they are installed are not counted."""
    code = [sys.executable, "-W", "ignore", "-c", SIDE_EFFECTS]
    done = subprocess.run(code, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
