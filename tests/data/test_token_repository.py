"""Which image processor belongs to tokens, by what lies beside them."""

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_igpt import IGPTImageProcessor
from hf_igpt.data.token_repository import processor_beside
from hf_igpt.data.token_store import save_tokens
from hf_igpt.data.tokenization import tokenize


PROCESSORS = {
    "palette": IGPTImageProcessor(4, palette=np.arange(21).reshape(7, 3)),
    "rgb": IGPTImageProcessor(4, token_kind="rgb"),
}
FOLDERS = {"palette": "palette", "rgb": "processor"}


@pytest.mark.parametrize("kind", list(PROCESSORS))
def test_the_processor_is_that_of_the_tokens_kind(tmp_path, kind):
    images = [Image.new("RGB", (4, 4), (level, 0, 0)) for level in (3, 200)]
    save_tokens(tokenize(datasets.Dataset.from_dict({"image": images}), PROCESSORS[kind]), tmp_path / "tokens")
    for other, folder in FOLDERS.items():
        PROCESSORS[other].save_pretrained(tmp_path / folder)
    found = processor_beside(tmp_path / "tokens")
    assert IGPTImageProcessor.from_pretrained(found).token_kind == kind
    (found / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=f"of the kind '{kind}', and there is no .*{FOLDERS[kind]}/preprocessor_conf"):
        processor_beside(tmp_path / "tokens")


def test_a_folder_without_tokens_is_refused(tmp_path):
    (tmp_path / "tokens").mkdir()
    with pytest.raises(ValueError, match="holds no tokenized data set"):
        processor_beside(tmp_path / "tokens")
