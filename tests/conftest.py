import os


# Read by huggingface_hub when it is imported, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"

import random  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from command_runs import run  # noqa: E402, F401  # a fixture

from hf_igpt import functional_igpt  # noqa: E402


# Tiny models take the path of large ones: norms and activations in blocks, their outputs recomputed.
functional_igpt.SMALL_ELEMENTS = 0

# One thread in every fixture too: another number of threads rounds sums in another order.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same generators, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def torch_settings():
    """What a test changes of torch's global settings is put back."""
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
