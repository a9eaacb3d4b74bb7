"""A Hub on loopback, in memory, with faults on demand, for tests of publishing and loading with the real client.

with HubServer(token="hf_secret", user="someone") as hub:
    hub.fail(Fault("lose_answer", "POST .*/commit/"))
    subprocess.run(command, env=os.environ | hub.environment(tmp_path))
assert hub.repos["models/someone/name"].files["config.json"] == ...
"""

import contextlib
import re
import socket
import threading
import traceback
from base64 import b64decode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from hub_api import Answer, Hub, Request


@dataclass
class Fault:
    """What goes wrong at requests whose "METHOD path" `match` is found in, from number `first` on, `times` times.

    Request numbers count from 1. `times=None` is for good: the network stays down. Several may meet in one request.

    - `refuse`: closes the connection before the body is read
    - `cut_upload`: after half of the body
    - `lose_answer`: after all of it is done, without an answer
    - `cut_answer`: halfway in the answer's body (in its head, if it has none)
    - `answer`: with `status`, `headers` and `body` instead; what was asked for is done only if `processed`
    - `delay`: waits `seconds` first
    - `push`: someone else's commit of `files` comes first
    - `truncate`: of the files in `files`, what is committed lacks its second half
    """

    action: Literal["refuse", "cut_upload", "lose_answer", "cut_answer", "answer", "delay", "push", "truncate"]
    match: str = ""
    first: int = 1
    times: int | None = 1
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "told to fail"}'
    processed: bool = False
    seconds: float = 0.0
    files: dict[str, bytes] | list[str] = field(default_factory=dict)

    def __post_init__(self):
        if self.action in ("push", "truncate") and not self.match:
            self.match = "POST .*/commit/"

    def hits(self, request: Request) -> bool:
        if self.times == 0 or request.number < self.first:
            return False
        return re.search(self.match, f"{request.method} {request.path}") is not None


class HubServer(Hub):
    """Serves while its `with` block runs. `requests` is the log, in the order they came in."""

    def __init__(self, token: str = "hf_of_tests", user: str = "someone", organizations: tuple[str, ...] = ()):
        super().__init__(token, user, organizations)
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.connections: list[socket.socket] = []
        self.lock = threading.Lock()
        self.stopping = threading.Event()

    def __enter__(self) -> "HubServer":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        # The client keeps connections open, and each has a thread here.
        for connection in self.connections:
            close(connection)

    def fail(self, *faults: Fault) -> None:
        self.faults.extend(faults)

    def environment(self, home: str | Path) -> dict[str, str]:
        """Variables that point a subprocess here, with its caches in `home` and nothing of the user's."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(Path(home) / "hub"),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def received(self) -> bytes:
        """All that came in, to be searched for secrets: without Authorization, with base64 in JSON decoded."""
        parts = []
        for request in self.requests:
            headers = [f"{name}: {value}" for name, value in request.headers.items() if name != "authorization"]
            parts += ["\n".join([request.path, unquote(request.path), *headers]).encode(), request.body]
            encoded = re.findall(rb'"(?:content|sample)": ?"([\w+/=]*)"', request.body)
            parts += [b64decode(text) for text in encoded]
        return b"\n".join(parts)

    def begin(self, method: str, path: str, headers: dict[str, str]) -> tuple[Request, list[Fault]]:
        """Logs a request and takes the faults it meets."""
        with self.lock:
            request = Request(len(self.requests) + 1, method, path, headers)
            self.requests.append(request)
            faults = [fault for fault in self.faults if fault.hits(request)]
            for fault in faults:
                request.faults.append(fault.action)
                fault.times = None if fault.times is None else fault.times - 1
        for fault in faults:
            if fault.action == "delay":
                self.stopping.wait(fault.seconds)
        return request, faults

    def process(self, request: Request, faults: list[Fault]) -> Answer:
        """A mistake in this server answers 501, which the client does not try again."""
        with self.lock:
            answer = None
            for fault in faults:
                if fault.action == "push":
                    self.repos["/".join(request.path.split("/")[2:5])].push(fault.files, "Commit of someone else")
                elif fault.action == "truncate":
                    request.truncated.update(fault.files)
                elif fault.action == "answer":
                    answer = Answer(fault.status, fault.body, fault.headers)
            if answer is not None and not any(fault.processed for fault in faults):
                return answer
            try:
                done = self.answer(request)
            except Exception:
                done = Answer(501, traceback.format_exc().encode(), {"Content-Type": "text/plain"})
            return answer or done


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.server.hub.connections.append(self.connection)

    def serve(self) -> None:
        hub: HubServer = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        request, faults = hub.begin(self.command, self.path, headers)
        actions = {fault.action for fault in faults}
        if "refuse" in actions:
            return self.drop()
        length = int(headers.get("content-length", 0))
        request.body = self.rfile.read(length // 2 if "cut_upload" in actions else length)
        if "cut_upload" in actions:
            return self.drop()
        answer = hub.process(request, faults)
        if "lose_answer" in actions:
            return self.drop()
        request.status = answer.status
        self.send(answer, cut="cut_answer" in actions)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = serve

    def send(self, answer: Answer, cut: bool) -> None:
        body = b"" if self.command == "HEAD" else answer.body
        head = f"HTTP/1.1 {answer.status} {self.responses[answer.status][0]}\r\n"
        for name, value in (answer.headers | {"Content-Length": str(len(answer.body))}).items():
            head += f"{name}: {value}\r\n"
        data = head.encode() + b"\r\n" + body
        try:
            self.wfile.write(data[: len(data) - max(len(body) // 2, 1)] if cut else data)
        except ConnectionError:
            self.close_connection = True
        if cut:
            self.drop()

    def drop(self) -> None:
        self.close_connection = True
        close(self.connection)


def close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
