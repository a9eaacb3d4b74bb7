"""Many users of the demo at once, some of whose requests are bad: what came of every request.

Outcomes of good requests are "right" or "wrong: CAUSE"; of bad ones "message" (in words, to the user), "refused" (what
no page sends), "left" or "wrong: CAUSE".
"""

import math
import statistics
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image
from tiny_demo import huge_png, pictures, png, text_of
from visitor import Visitor, file_data

from hf_igpt.demo.checkpoints import Checkpoint
from hf_igpt.demo.inputs import KEEP_FRAME, KEEP_ROWS
from hf_igpt.generation import complete, inpaint, sample
from hf_igpt.regions_igpt import center_square


NUM_IMAGES = 2
TOP_K = 5
GOOD = ("completion", "inpainting", "whole images")
BAD = ("text file", "truncated PNG", "huge PNG", "out of range", "not a number", "other checkpoint", "path", "leaves")
# By which part of a page's routes a path may come in.
ROUTES = ("gradio_api/file=", "gradio_api/file/", "gradio_api/stream/", "gradio_api/proxy=", "file=", "static/")
ROUTES += ("assets/", "svelte/", "gradio_api/custom_component/1/client/component/")
# What caches and allocators may still take once every user has been there.
GROWTH_LIMIT = 50 * 2**20


@dataclass(frozen=True)
class Request:
    """
    What a user asks for.

    Args:
        checkpoint: which model, by the name the demo has for it.
        image: the user's own, of the model's size and colours.
        rows: rows kept, for a completion.
        expected: images that the library draws with the same model, image and seed; none for bad requests.
    """

    number: int
    kind: str
    checkpoint: str
    image: Image.Image
    rows: int
    expected: Sequence[np.ndarray] = ()

    def settings(self, **changes: Any) -> list[Any]:
        """The data of the demo's event `generate`."""
        keep = KEEP_FRAME if self.kind == "inpainting" else KEEP_ROWS
        values = {"checkpoint": self.checkpoint, "image": None, "keep": keep, "rows": self.rows, "hole": None}
        values |= {"count": NUM_IMAGES, "temperature": 1, "top_k": TOP_K, "seed": self.number, "steps": 4}
        return list((values | changes).values())


def plan(checkpoints: Mapping[str, Checkpoint], requests: int, bad: int, seed: int) -> list[Request]:
    """
    Requests, each with an image and a seed of its own.

    Args:
        checkpoints: by the demo's names, "causal" in the name of the next-pixel model and "masked" in the other's.
        bad: how many of them are bad; every kind in turn, at seeded places.
    """
    random = np.random.default_rng(seed)
    is_bad = random.permutation(np.arange(requests) < bad)
    causal, masked = (next(name for name in checkpoints if kind in name) for kind in ("causal", "masked"))
    kinds = {True: 0, False: 0}
    planned = []
    for number, this_is_bad in enumerate(is_bad.tolist()):
        choices = BAD if this_is_bad else GOOD
        kind = choices[kinds[this_is_bad] % len(choices)]
        kinds[this_is_bad] += 1
        name = masked if kind == "inpainting" or number % 2 and kind == "whole images" else causal
        checkpoint = checkpoints[name]
        tokens = random.integers(0, checkpoint.processor.num_colors, (1, checkpoint.model.config.n_positions))
        rows = int(random.integers(1, checkpoint.grid[0]))
        (image,) = checkpoint.processor.decode(tokens)
        drawn = _drawn_directly(checkpoint, kind, tokens, rows, number)
        planned.append(Request(number, kind, name, image, rows, [np.asarray(image) for image in drawn]))
    return planned


def _drawn_directly(checkpoint: Checkpoint, kind: str, tokens: np.ndarray, rows: int, seed: int) -> list[Image.Image]:
    options = {"seed": seed, "top_k": TOP_K} | ({} if checkpoint.is_causal else {"num_steps": 4})
    if kind == "completion":
        drawn = complete(checkpoint.model, tokens, rows, num_samples=NUM_IMAGES, **options)[0]
    elif kind == "inpainting":
        drawn = inpaint(checkpoint.model, tokens, center_square(checkpoint.grid), num_samples=NUM_IMAGES, **options)[0]
    elif kind == "whole images":
        drawn = sample(checkpoint.model, NUM_IMAGES, **options)
    else:
        return []
    return checkpoint.processor.decode(drawn)


class Load:
    """
    Users who each go through their requests, all at once.

    Args:
        url: the demo's address.
        process: id of the demo's process, "self" for this one.
        outside: an image on the server's machine that nobody uploaded.
        measure_after: resident memory is read whenever so many requests are done.
    """

    def __init__(self, url: str, process: int | str, outside: Path, measure_after: int):
        self.url, self.process, self.outside, self.measure_after = url, process, outside, measure_after
        self.outcomes: dict[str, Counter] = {}
        self.seconds: list[float] = []
        self.places: list[int] = []
        self.lengths: list[int] = []
        self.memory = {"before": resident_bytes(process)}
        self._done = 0
        self._lock = threading.Lock()
        self._bad_files = {
            "text file": ("notes.txt", b"this is no image"),
            "truncated PNG": ("truncated.png", png(Image.effect_noise((200, 200), 50))[:3000]),
            "huge PNG": ("huge.png", huge_png()),
        }

    def run(self, requests: Sequence[Request], users: int) -> None:
        """All requests, user by user in turn."""
        with ThreadPoolExecutor(users) as pool:
            list(pool.map(self._use, [requests[user::users] for user in range(users)]))
        self.memory["after"] = resident_bytes(self.process)

    def growth(self) -> int:
        """Bytes that the server's memory grew by after the first part of the requests."""
        return self.memory["after"] - list(self.memory.values())[1]

    def wrong(self) -> list[str]:
        """What shouldn't have come, in words."""
        return [
            f"{kind}: {outcome}"
            for kind, counts in self.outcomes.items()
            for outcome in counts
            if outcome.startswith("wrong")
        ]

    def metrics(self) -> dict[str, Any]:
        """What was counted and measured."""
        ordered = sorted(self.seconds)
        return {
            "outcomes": {kind: dict(self.outcomes[kind]) for kind in sorted(self.outcomes)},
            "seconds_to_draw": {
                "median": round(statistics.median(ordered), 3),
                "p95": round(ordered[math.ceil(0.95 * len(ordered)) - 1], 3),
                "max": round(ordered[-1], 3),
            },
            "queue": {"last_place": 1 + max(self.places), "longest": max(self.lengths)},
            "resident_megabytes": {when: round(count / 1e6, 1) for when, count in self.memory.items()},
        }

    def _use(self, requests: Sequence[Request]) -> None:
        visitor = Visitor(self.url)
        for request in requests:
            try:
                outcome = self._good(visitor, request) if request.kind in GOOD else self._bad(visitor, request)
            except Exception as error:
                outcome = f"wrong: {type(error).__name__}: {str(error)[:300]}"
            with self._lock:
                self.outcomes.setdefault(request.kind, Counter())[outcome] += 1
                self._done += 1
                if self._done % self.measure_after == 0:
                    self.memory[f"after {self._done} requests"] = resident_bytes(self.process)

    def _good(self, visitor: Visitor, request: Request) -> str:
        if request.kind == "whole images":
            visitor.call("no_image", [request.checkpoint])
        else:
            file = visitor.send_file("mine.png", png(request.image))
            _, view, *_ = visitor.call("upload", [request.checkpoint, file])
            if any((picture != np.asarray(request.image)).any() for picture in pictures(view)):
                return "wrong: another image than the uploaded one is shown"
        told: list[dict[str, Any]] = []
        start = time.perf_counter()
        page, line = visitor.call("generate", request.settings(), told)
        elapsed = time.perf_counter() - start
        estimates = [message for message in told if message["msg"] == "estimation"]
        with self._lock:
            self.seconds.append(elapsed)
            self.places += [estimate["rank"] for estimate in estimates if estimate["rank"] is not None]
            self.lengths += [estimate["queue_size"] for estimate in estimates]
        if f"Done: {NUM_IMAGES} images, seed {request.number}" not in text_of(line):
            return f"wrong: {text_of(line)}"
        drawn = pictures(page)
        same = len(drawn) == NUM_IMAGES and all(map(np.array_equal, drawn, request.expected))
        return "right" if same else "wrong: other images than the library's"

    def _bad(self, visitor: Visitor, request: Request) -> str:
        if request.kind in self._bad_files:
            file = visitor.send_file(*self._bad_files[request.kind])
            *_, line = visitor.call("upload", [request.checkpoint, file])
            return _told(line, "This file can't be used")
        if request.kind == "path":
            return "wrong: a file was read" if opens(visitor, request.checkpoint, self.outside) else "refused"
        if request.kind == "leaves":
            return self._leave(visitor, request)
        if request.kind == "other checkpoint":
            return self._refused(visitor, request.settings(checkpoint="../causal"), "not in the list of choices")
        if request.kind == "not a number":
            return self._refused(visitor, request.settings(temperature=math.nan), "Temperature must be")
        changes = ({"count": 10**6}, {"temperature": 0}, {"rows": -1}, {"seed": "many"}, {"top_k": -5})
        return self._refused(visitor, request.settings(**changes[request.number % len(changes)]), "must be")

    def _refused(self, visitor: Visitor, settings: list[Any], words: str) -> str:
        answer = visitor.join("generate", settings)
        if answer.status_code in (400, 422):
            return "message" if answer.text else "wrong: no message"
        last = list(visitor.messages())[-1]
        if not last["success"]:
            return "message" if words in str(last["output"]["error"]) else f"wrong: {last['output']}"
        return _told(last["output"]["data"][1], words)

    def _leave(self, visitor: Visitor, request: Request) -> str:
        """Asks for many images, and closes the page at the first part of them."""
        session = f"{visitor.session}-leaves-{request.number}"
        answer = visitor.join("generate", request.settings(count=16, rows=0), session)
        if answer.status_code != 200:
            return f"wrong: {answer.text}"
        for message in visitor.messages(session):
            if message["msg"] == "process_generating":
                return "left"
        return "wrong: nothing came before the end"


def _told(line: str, words: str) -> str:
    is_message = 'role="alert"' in line and words in text_of(line)
    return "message" if is_message else f"wrong: {text_of(line)}"


def opens(visitor: Visitor, checkpoint: str, path: Path | str) -> bool:
    """Whether the demo takes a path on its machine for an upload."""
    answer = visitor.join("upload", [checkpoint, file_data(str(path))])
    if answer.status_code != 200:
        return False
    last = list(visitor.messages())[-1]
    return bool(last["success"] and pictures(str(last["output"]["data"])))


def path_forms(file: Path, uploaded: str) -> list[str]:
    """
    Ways to write a path, some of which a server might take for another.

    Args:
        uploaded: path of an uploaded file, as the server told it.
    """
    absolute, up = str(file.resolve()), "../" * 20
    forms = [absolute, absolute[1:], up + absolute[1:], f"./{up}{absolute[1:]}", f"{uploaded}/{up}{absolute[1:]}"]
    forms += [f"file://{absolute}", f"/proc/self/root{absolute}", f"/proc/self/cwd/{file.name}", file.name]
    return [*forms, (up + absolute[1:]).replace("/", "\\"), f"{absolute}\0.png", f"....//{up}{absolute[1:]}"]


def encodings(path: str) -> list[str]:
    """Ways to write a path in an address. What can't stand in a request line at all isn't one."""
    once = quote(path)
    return sorted({once, quote(path, safe=""), quote(quote(path, safe=""), safe=""), once.replace("../", "%2e%2e%2f")})


def try_to_read(visitor: Visitor, checkpoint: str, files: Sequence[Path]) -> dict[str, int]:
    """
    Tries to read files that nobody uploaded, by every route, and images as uploads.

    Returns:
        How many ways were tried, how many led to a file, and how many made the server fail.
    """
    uploaded = visitor.send_file("mine.png", png(Image.new("RGB", (8, 8))))["path"]
    # The way there works: an upload itself can be read.
    assert visitor.get(f"gradio_api/file={uploaded}")[0] == 200
    tried = read = failed = 0
    for file in files:
        content, forms = file.read_bytes(), path_forms(file, uploaded)
        targets = [route + target for form in forms for target in encodings(form) for route in ROUTES]
        for status, body in map(visitor.get, targets):
            tried, read, failed = tried + 1, read + (content in body), failed + (status >= 500)
        if file.suffix == ".png":
            tried += len(forms)
            read += sum(opens(visitor, checkpoint, form) for form in forms)
    return {"ways_tried": tried, "files_read": read, "server_errors": failed}


def resident_bytes(process: int | str) -> int:
    """Resident memory of a process. Linux."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
