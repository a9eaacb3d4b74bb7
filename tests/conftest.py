import os


# Read by huggingface_hub when it is imported, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"

import random  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from hf_igpt import functional_igpt  # noqa: E402


# Tiny models take the path of large ones: norms and activations in blocks, their outputs recomputed.
functional_igpt.SMALL_ELEMENTS = 0


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same generators, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def torch_settings():
    """One thread, and what a test changes of torch's global settings is put back."""
    threads, dtype, grad = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
