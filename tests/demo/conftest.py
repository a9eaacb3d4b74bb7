from pathlib import Path

import pytest
from tiny_demo import write_checkpoint

from hf_igpt.commands.demo import open_checkpoint


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Folders of a next-pixel and of a masked model, 8 x 8 pixels."""
    return {kind: write_checkpoint(tmp_path_factory.mktemp(kind), kind, 8) for kind in ("causal", "masked")}


@pytest.fixture(scope="session")
def opened(checkpoints):
    """Both, as the demo opens them."""
    return {kind: open_checkpoint(str(folder), "cpu") for kind, folder in checkpoints.items()}


@pytest.fixture(params=["causal", "masked"])
def either(request, opened):
    return opened[request.param]
