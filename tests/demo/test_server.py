"""The demo as clients on the network meet it: many at once, hostile ones, and ones who leave."""

import gc
import math
import os
import threading
import time
from collections import defaultdict
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import gradio
import httpx
import pytest
from browser import wait_until
from gradio_client import Client
from load_harness import BAD, GROWTH_LIMIT, Load, opens, plan, try_to_read
from packaging.version import Version
from tiny_demo import alternatives, marked, png, text_of
from visitor import Visitor, file_data

from hf_igpt.commands.demo import open_checkpoint
from hf_igpt.demo import handlers
from hf_igpt.demo.checkpoints import Library
from hf_igpt.demo.interface import build
from hf_igpt.demo.serving import launch_options


USERS = 10
MAX_WAITING = 16
# What the event `generate` takes, in its order; the image is the session's own.
SETTINGS = {"name": "causal", "keep": "upper rows", "rows": 4, "hole": None, "count": 2, "temperature": 1, "top_k": 0}
SETTINGS |= {"seed": 0, "steps": 1}


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


@pytest.fixture
def visitor(app):
    return Visitor(app.local_url)


def new_client(app) -> Client:
    return Client(app.local_url, verbose=False, analytics_enabled=False)


def generate_data(**changes) -> list:
    name, *rest = (SETTINGS | changes).values()
    return [name, None, *rest]


# Start-up


def test_defaults_are_safe(app):
    assert app.local_url.startswith("http://127.0.0.1:") and app.share_url is None and not app.share
    assert app.allowed_paths == [] and not app.show_error and not app.analytics_enabled
    assert app.max_file_size == 20 * 2**20 and app.delete_cache == (600, 3600)
    assert app.state_session_capacity if hasattr(app, "state_session_capacity") else True
    assert app._queue.max_size == MAX_WAITING
    assert Version(gradio.__version__) >= Version("6.29")
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
def test_values_outside_the_controls(visitor, watch, changes, cause):
    _, line = visitor.call("generate", generate_data(**changes))
    assert cause in text_of(line) and 'role="alert"' in line
    assert watch.parts == 0


def test_rows_outside_the_control_without_an_image(visitor, watch):
    visitor.call("no_image", ["causal"])
    _, line = visitor.call("generate", generate_data(rows=-1))
    assert "Rows kept must be" in text_of(line) and watch.parts == 0
    _, line = visitor.call("generate", generate_data(keep="all but what I paint"))
    assert "Done: 2 images" in text_of(line)


def test_not_a_number(visitor, watch):
    """JSON has none, but Python's readers take it."""
    answer = visitor.join("generate", generate_data(temperature=math.nan))
    if answer.status_code == 200:
        assert "Temperature must be" in str(list(visitor.messages()))
    else:
        assert answer.status_code in (400, 422)
    assert watch.parts == 0


# Many users


def test_ten_users_get_what_the_library_draws_for_them(app, opened, watch, tmp_path):
    """A small sample of benchmarks/demo_load.py: everyone's own images, a message for bad requests, memory flat."""
    outside = tmp_path / "outside.png"
    outside.write_bytes(png(marked(0)))
    watch.seconds = 0.01
    load = Load(app.local_url, "self", outside, measure_after=USERS)
    requests = plan(opened, 3 * USERS, len(BAD), seed=0)
    load.run(requests, USERS)
    assert load.wrong() == []
    counted = load.metrics()
    outcomes = {kind: sum(counts.values()) for kind, counts in counted["outcomes"].items()}
    assert sum(outcomes.values()) == 3 * USERS and all(outcomes[kind] == 1 for kind in BAD)
    assert watch.most == 1 and 2 <= counted["queue"]["last_place"] <= counted["queue"]["longest"] <= USERS
    wait_until(lambda: watch.now == 0)
    gc.collect()
    assert load.growth() < GROWTH_LIMIT
    # Somebody else's images would be found.
    first, second = [request for request in requests if request.kind == "completion"][:2]
    load.run([replace(first, expected=second.expected)], 1)
    assert load.wrong() == ["completion: wrong: other images than the library's"]


def test_the_queue_is_bounded_and_says_so(app, visitor, watch):
    """Who waits is told the place; who comes when it is full is told that."""
    watch.seconds = 0.2
    clients = [new_client(app) for _ in range(3)]
    jobs = [client.submit(**SETTINGS, api_name="/generate") for client in clients]
    places = defaultdict(set)

    def seen() -> bool:
        for number, job in enumerate(jobs):
            places[number].add(job.status().rank)
        return len({rank for ranks in places.values() for rank in ranks if rank is not None}) >= 2

    wait_until(seen, 10)
    answers = [visitor.join("generate", generate_data(), f"many{number}") for number in range(MAX_WAITING + 4)]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 1 <= len(refused) <= 8 and all("full" in answer.text.lower() for answer in refused)
    watch.seconds = 0
    assert all("Done" in job.result(timeout=60)[1] for job in jobs)
    wait_until(lambda: watch.now == 0 and sum(map(len, queues(app))) == 0, 60)


def test_the_work_of_who_leaves_stops_within_a_row(visitor, watch):
    watch.seconds = 0.3
    assert visitor.join("generate", generate_data(rows=0, count=16)).status_code == 200
    for message in visitor.messages():
        if message["msg"] == "process_generating":
            break
    drawn = watch.parts
    wait_until(lambda: watch.closed == 1, 20)
    assert watch.parts <= drawn + 4 < 9 and watch.now == 0


def test_stop_by_the_session_alone(app, client, watch):
    watch.seconds = 0.5
    other = new_client(app)
    job = client.submit(**(SETTINGS | {"rows": 0}), api_name="/generate")
    wait_until(lambda: watch.parts > 0)
    # Another user's stop stops nothing.
    other.predict(api_name="/stop")
    assert watch.now == 1
    client.predict(api_name="/stop")
    wait_until(lambda: watch.now == 0)
    assert watch.parts < 9
    job.cancel()


# Files and addresses


def test_no_file_can_be_read(visitor, tmp_path):
    outside = tmp_path / "outside.png"
    outside.write_bytes(png(marked(0)))
    counted = try_to_read(visitor, "causal", [outside])
    assert counted["ways_tried"] > 300 and counted["files_read"] == counted["server_errors"] == 0
    # The same would be found: an upload is what its owner opens.
    assert opens(visitor, "causal", visitor.send_file("mine.png", png(marked(0)))["path"])


def test_a_path_or_an_address_is_no_upload(visitor, checkpoints):
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
            file = file_data(path)
            with pytest.raises(AssertionError) as caught:
                visitor.call("upload", ["causal", file])
            assert "root:" not in str(caught.value) and "vocab_size" not in str(caught.value)
            editor = {"background": file, "layers": [file], "composite": file}
            with pytest.raises(AssertionError):
                visitor.call("drawing", ["causal", editor])
        for route in ("file=", "file/", "proxy="):
            for target in (address, "https://example.com/", "HTTPS://example.com/", "%68ttp://example.com/"):
                assert visitor.get(f"gradio_api/{route}{target}")[0] == 403
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


def queues(app) -> list:
    return [queue.queue for queue in app._queue.event_queue_per_concurrency_id.values()]
