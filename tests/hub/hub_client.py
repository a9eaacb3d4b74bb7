"""The real client in the process of a test, where it was imported offline and with its defaults.

`HfApi(endpoint=...)` reaches a server of the test with all that its methods do. What takes no endpoint follows the
HF_ENDPOINT of the time huggingface_hub was imported: `ModelCard.load`, `validate` and `push_to_hub`, the list of
agents it asks for once a day, telemetry, and everything in transformers and datasets. Such code needs a process of
its own.

Whether Xet is used the client decides alone: by HF_HUB_DISABLE_XET and by whether hf_xet is installed.
"""

import time
from types import SimpleNamespace

import pytest
from hub_api import Hub
from huggingface_hub import HfApi, close_session, constants, file_download
from huggingface_hub.utils import _http


def go_online(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Requests leave the process, by plain LFS. Returns the list of seconds the client wants to wait: it doesn't."""
    online = {
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in online.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    waits: list[float] = []
    impatient = SimpleNamespace(**vars(time) | {"sleep": waits.append})
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", impatient)
    close_session()
    return waits


def connect(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)
