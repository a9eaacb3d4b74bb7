"""The scripts in docs, as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


DOCS = Path(__file__).parents[1] / "docs"
# They import each other.
sys.path.append(str(DOCS))


def load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


tables = load("tables")
