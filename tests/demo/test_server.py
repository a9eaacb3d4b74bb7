"""The demo as clients on the network meet it: many at once, hostile ones, and ones who leave."""

import gc
import json
import os
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import gradio
import httpx
import numpy as np
import pytest
from browser import wait_until
from gradio_client import Client, handle_file
from packaging.version import Version
from tiny_demo import alternatives, marked, pictures, png, text_of

from hf_igpt.commands.demo import open_checkpoint
from hf_igpt.demo import handlers
from hf_igpt.demo.checkpoints import Library
from hf_igpt.demo.interface import build
from hf_igpt.demo.serving import launch_options


USERS = 10
MAX_WAITING = 16
SETTINGS = {"keep": "upper rows", "rows": 4, "hole": None, "count": 2, "temperature": 1, "top_k": 0, "seed": 0}


class Watch:
    """Stands around `draw`: how many draw at once, what was drawn, and a brake."""

    def __init__(self, draw):
        self.draw = draw
        self.seconds = 0.0
        self.now = self.most = self.parts = self.closed = 0
        self.lock = threading.Lock()

    def __call__(self, *arguments):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            for part in self.draw(*arguments):
                time.sleep(self.seconds)
                self.parts += 1
                yield part
        finally:
            with self.lock:
                self.now -= 1
                self.closed += 1


@pytest.fixture(scope="module")
def app(checkpoints, tmp_path_factory):
    names = {kind: str(folder) for kind, folder in checkpoints.items()}
    library = Library(list(names), lambda name: open_checkpoint(names[name], "cpu"))
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
    patch.setattr(handlers, "SECONDS_BETWEEN_VIEWS", 0)
    page = build(library, MAX_WAITING)
    page.launch(**launch_options(None, None), prevent_thread_lock=True)
    yield page
    page.close(verbose=False)
    patch.undo()


@pytest.fixture
def watch(monkeypatch):
    watch = Watch(handlers.draw)
    monkeypatch.setattr(handlers, "draw", watch)
    return watch


@pytest.fixture
def client(app):
    return new_client(app)


def new_client(app) -> Client:
    return Client(app.local_url, verbose=False, analytics_enabled=False)


def generate(client: Client, **changes) -> tuple[str, str]:
    return client.predict(name="causal", steps=1, **(SETTINGS | changes), api_name="/generate")


# Start-up


def test_defaults_are_safe(app):
    assert app.local_url.startswith("http://127.0.0.1:") and app.share_url is None and not app.share
    assert app.allowed_paths == [] and not app.show_error and not app.analytics_enabled
    assert app.max_file_size == 20 * 2**20 and app.delete_cache == (600, 3600)
    assert app.state_session_capacity if hasattr(app, "state_session_capacity") else True
    assert app._queue.max_size == MAX_WAITING
    assert Version(gradio.__version__) >= Version("6.16")
    assert "dev_mode" not in app.config or not app.config["dev_mode"]
    on_model = [fn for fn in app.fns.values() if fn.concurrency_id == "model"]
    assert len(on_model) >= 5 and {fn.concurrency_limit for fn in on_model} == {1}


def test_only_listed_checkpoints(client, app):
    for name in ("openai/imagegpt-small", "../causal", "/etc"):
        with pytest.raises(Exception, match="not in the list of choices"):
            client.predict(name=name, api_name="/surprise")
    assert "Heat map" in client.predict(name="masked", api_name="/surprise")


# Numbers


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"count": 10**6}, "Number of images must be a whole number from 1 to 16"),
        ({"count": "many"}, "Number of images must be a whole number"),
        ({"temperature": 0}, "Temperature must be a number from 0.1 to 2"),
        ({"temperature": None}, "Temperature must be a number from 0.1 to 2"),
        ({"rows": -1}, "Rows kept must be a whole number from 0 to 7"),
        ({"rows": 8}, "Rows kept must be a whole number from 0 to 7"),
        ({"top_k": -5}, "Top-k must be a whole number"),
        ({"seed": [1]}, "Seed must be a whole number"),
        ({"keep": "all but what I paint"}, "Nothing is painted"),
    ],
)
def test_values_outside_the_controls(client, watch, changes, cause):
    _, line = generate(client, **changes)
    assert cause in text_of(line) and 'role="alert"' in line
    assert watch.parts == 0


def test_not_a_number(app, watch):
    """JSON has none, but Python's readers take it."""
    index = next(index for index, fn in app.fns.items() if fn.api_name == "generate")
    data = '["causal", null, "upper rows", 4, null, 2, NaN, 0, 0, 1]'
    body = f'{{"data": {data}, "fn_index": {index}, "session_hash": "nan", "trigger_id": null}}'
    answer = httpx.post(f"{app.local_api_url}queue/join", content=body, headers={"content-type": "application/json"})
    if answer.status_code == 200:
        assert "Temperature must be" in "".join(events(app, "nan"))
    else:
        assert answer.status_code in (400, 422)
    assert watch.parts == 0


# Many users


def test_ten_users_get_their_own_images(app, watch, tmp_path):
    """Everyone marks an image with a colour, and finds that colour and nobody else's in what is drawn."""
    clients = [new_client(app) for _ in range(USERS)]
    watch.seconds = 0.01

    def use(number: int) -> None:
        path = tmp_path / f"{number}.png"
        path.write_bytes(png(marked(number)))
        color = np.asarray(marked(number))[0, 0]
        for seed in range(2):
            view, _, status = clients[number].predict("causal", handle_file(path), api_name="/upload")
            assert "Chosen: your file" in text_of(status)
            assert all((picture == color).all() for picture in pictures(view))
            page, line = generate(clients[number], seed=seed)
            assert f"Done: 2 images, seed {seed}" in text_of(line)
            drawn = pictures(page)
            assert len(drawn) == 2 and all((picture[:4] == color).all() for picture in drawn)
            assert all((picture[4:] != color).any() for picture in drawn)

    before = memory()
    for round_ in range(2):
        with ThreadPoolExecutor(USERS) as pool:
            list(pool.map(use, range(USERS)))
        gc.collect()
        if round_ == 0:
            before, first = memory(), memory() - before
    assert watch.most == 1 and watch.closed == 4 * USERS
    assert first < 300 * 2**20 and memory() - before < 50 * 2**20


def test_the_queue_is_bounded_and_says_so(app, watch):
    """Who waits is told the place; who comes when it is full is told that."""
    watch.seconds = 0.2
    clients = [new_client(app) for _ in range(3)]
    jobs = [client.submit(name="causal", steps=1, **SETTINGS, api_name="/generate") for client in clients]
    places = defaultdict(set)

    def seen() -> bool:
        for number, job in enumerate(jobs):
            places[number].add(job.status().rank)
        return len({rank for ranks in places.values() for rank in ranks if rank is not None}) >= 2

    wait_until(seen, 10)
    index = next(index for index, fn in app.fns.items() if fn.api_name == "generate")
    data = ["causal", None, "upper rows", 4, None, 2, 1, 0, 0, 1]
    answers = [
        httpx.post(
            f"{app.local_api_url}queue/join",
            json={"data": data, "fn_index": index, "session_hash": f"many{number}", "trigger_id": None},
        )
        for number in range(MAX_WAITING + 4)
    ]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 1 <= len(refused) <= 8 and all("full" in answer.text.lower() for answer in refused)
    watch.seconds = 0
    assert all("Done" in job.result(timeout=60)[1] for job in jobs)
    wait_until(lambda: watch.now == 0 and sum(map(len, queues(app))) == 0, 60)


def test_the_work_of_who_leaves_stops_within_a_row(app, watch):
    watch.seconds = 0.3
    index = next(index for index, fn in app.fns.items() if fn.api_name == "generate")
    data = ["causal", None, "upper rows", 0, None, 16, 1, 0, 0, 1]
    body = {"data": data, "fn_index": index, "session_hash": "leaver", "trigger_id": None}
    assert httpx.post(f"{app.local_api_url}queue/join", json=body).status_code == 200
    for event in events(app, "leaver"):
        if "process_generating" in event:
            break
    drawn = watch.parts
    wait_until(lambda: watch.closed == 1, 20)
    assert watch.parts <= drawn + 4 < 9 and watch.now == 0


def test_stop_by_the_session_alone(app, client, watch):
    watch.seconds = 0.2
    job = client.submit(name="causal", steps=1, **SETTINGS, api_name="/generate")
    wait_until(lambda: watch.parts > 0)
    # Another user's stop stops nothing.
    new_client(app).predict(api_name="/stop")
    assert watch.now == 1
    client.predict(api_name="/stop")
    wait_until(lambda: watch.now == 0)
    assert watch.parts < 5
    job.cancel()


# Files and addresses


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../../../etc/passwd", "%2Fetc%2Fpasswd", "..%2f..%2f..%2fetc%2fpasswd", "file:///etc/passwd"],
)
def test_no_file_can_be_read(app, path):
    for route in ("file=", "file/", "stream/"):
        answer = httpx.get(f"{app.local_api_url}{route}{path}")
        assert answer.status_code >= 400 and "root:" not in answer.text


def test_a_path_or_an_address_is_no_upload(app, client, checkpoints):
    class Counter(BaseHTTPRequestHandler):
        requests = 0

        def do_GET(self):
            Counter.requests += 1
            self.send_error(404)

        do_HEAD = do_GET

    with HTTPServer(("127.0.0.1", 0), Counter) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/x.png"
        weights = str(checkpoints["causal"] / "config.json")
        for path in (address, "https://example.com/x.png", "/etc/passwd", weights):
            file = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
            with pytest.raises(Exception) as caught:  # noqa: PT011, B017
                call(app, "upload", ["causal", file])
            assert "root:" not in str(caught.value) and "vocab_size" not in str(caught.value)
            editor = {"background": file, "layers": [file], "composite": file}
            with pytest.raises(Exception):  # noqa: PT011, B017
                call(app, "drawing", ["causal", editor])
        for route in ("file=", "file/", "proxy="):
            for target in (address, "https://example.com/", "HTTPS://example.com/", "%68ttp://example.com/"):
                assert httpx.get(f"{app.local_api_url}{route}{target}").status_code == 403
        server.shutdown()
    assert Counter.requests == 0


def test_uploads_are_limited(app):
    content = b"x" * (21 * 2**20)
    answer = httpx.post(f"{app.local_api_url}upload", files={"files": ("large.png", content)}, timeout=60)
    assert answer.status_code == 413
    assert (
        sum(path.stat().st_size for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()) < 2**22
    )


def test_tabs(client):
    assert len(alternatives(client.predict(name="causal", api_name="/palette"))) == 7
    assert "70.0 %" in client.predict(name="causal", api_name="/probe")
    assert len(alternatives(client.predict(name="causal", layer=1, api_name="/neighbours"))) == 9
    assert "Layer must be" in client.predict(name="causal", layer=99, api_name="/neighbours")


def call(app, name: str, data: list) -> list:
    """Calls an endpoint without the client's own checks. Raises AssertionError with the server's words on failure."""
    index = next(index for index, fn in app.fns.items() if fn.api_name == name)
    session = f"call{time.monotonic_ns()}"
    body = {"data": data, "fn_index": index, "session_hash": session, "trigger_id": None}
    answer = httpx.post(f"{app.local_api_url}queue/join", json=body)
    assert answer.status_code == 200, answer.text
    last = next(json.loads(event) for event in events(app, session) if "process_completed" in event)
    assert last["success"], last
    return last["output"]["data"]


def events(app, session: str):
    """What the server tells a session, line by line, until it is done or the reader leaves."""
    with httpx.stream("GET", f"{app.local_api_url}queue/data?session_hash={session}", timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                yield line[5:]
                if "process_completed" in line or "close_stream" in line:
                    return


def queues(app) -> list:
    return [queue.queue for queue in app._queue.event_queue_per_concurrency_id.values()]


def memory() -> int:
    """Resident bytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
