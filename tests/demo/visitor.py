"""Who meets the demo on the network: its routes as they are, without the checks of Gradio's own client."""

import http.client
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx


# For a server that draws for others first, on a slow machine.
SECONDS = 300


class Visitor:
    """
    Calls the demo's events by their names.

    Args:
        url: the page's address.
        session: by which the server knows this visitor; by default a new one.
    """

    def __init__(self, url: str, session: str | None = None):
        self.url = url if url.endswith("/") else f"{url}/"
        self.api = f"{self.url}gradio_api/"
        self.session = session or f"visitor{time.monotonic_ns()}"
        config = httpx.get(f"{self.url}config", timeout=SECONDS).json()
        self._events = {event["api_name"]: event["id"] for event in config["dependencies"]}

    def join(self, name: str, data: Sequence[Any], session: str | None = None) -> httpx.Response:
        """Stands in line for an event. NaN is sent as Python's JSON has it."""
        body = {"data": data, "fn_index": self._events[name], "session_hash": session or self.session}
        headers = {"content-type": "application/json"}
        return httpx.post(
            f"{self.api}queue/join", content=json.dumps(body | {"trigger_id": None}), headers=headers, timeout=SECONDS
        )

    def messages(self, session: str | None = None) -> Iterator[dict[str, Any]]:
        """
        What the server tells the session, until its events are done or the reader leaves.

        Raises:
            AssertionError: it takes too long; the server's signs of life don't count.
        """
        address, start = f"{self.api}queue/data?session_hash={session or self.session}", time.monotonic()
        with httpx.stream("GET", address, timeout=SECONDS) as answer:
            for line in answer.iter_lines():
                assert time.monotonic() - start < SECONDS, "the event was not done in time"
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    # The server ends the stream: who leaves before has all events of the session cancelled, the next
                    # one too.
                    if message["msg"] == "close_stream":
                        return
                    yield message

    def call(self, name: str, data: Sequence[Any], told: list[dict[str, Any]] | None = None) -> list:
        """
        What an event answers.

        Args:
            told: takes every message on the way.

        Raises:
            AssertionError: the server refused or failed; with its words.
        """
        answer = self.join(name, data)
        assert answer.status_code == 200, answer.text
        told = [] if told is None else told
        told.extend(self.messages())
        last = told[-1] if told else None
        assert last and last["msg"] == "process_completed" and last["success"], last
        return last["output"]["data"]

    def send_file(self, name: str, content: bytes) -> dict[str, Any]:
        """Uploads a file. Returns what stands for it in an event's data."""
        answer = httpx.post(f"{self.api}upload", files={"files": (name, content)}, timeout=SECONDS)
        assert answer.status_code == 200, answer.text
        return file_data(answer.json()[0])

    def get(self, target: str) -> tuple[int, bytes]:
        """Status and content of an address below the page's, sent as it stands: httpx would take dots out of it."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=SECONDS)
        try:
            connection.putrequest("GET", f"{parts.path}{target}", skip_accept_encoding=True)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def file_data(path: str) -> dict[str, Any]:
    """A file of the server by its path, as Gradio's events name one."""
    return {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
