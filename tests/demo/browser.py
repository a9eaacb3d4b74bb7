"""A real headless Chromium, and the demo as a process of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


REQUIRED = os.environ.get("IGPT_BROWSER_TESTS") == "required"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str | None:
    """Where Chromium is."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def missing() -> str | None:
    """Why there can be no test in a browser; None where there can, or where there must be."""
    if REQUIRED:
        return None
    if find_spec("playwright") is None:
        return "playwright is not installed: pip install playwright"
    return None if chromium() else "there is no chromium: apt-get install chromium"


@dataclass
class Demo:
    """A running demo."""

    url: str
    process: subprocess.Popen
    log: Path

    def is_alive(self) -> bool:
        """Whether it runs, and no error was raised in this package's code."""
        # A browser that closes in an upload raises in the server's library, below a layer of this package.
        tracebacks = self.log.read_text().split("Traceback (most recent call last)")[1:]
        raised_in = [re.findall(r'File "([^"]+)"', traceback)[-1] for traceback in tracebacks]
        return self.process.poll() is None and not any("hf_igpt/" in file for file in raised_in)


@contextmanager
def running_demo(folder: Path, *arguments: str) -> Iterator[Demo]:
    """`hf-igpt demo` in that folder, on any free port."""
    log = folder / "demo.err"
    command = [sys.executable, "-m", "hf_igpt.commands.main", "demo", "--cpu_threads", "1", *arguments]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(folder / "uploads"), "OMP_NUM_THREADS": "1"}
    environment.pop("GRADIO_SERVER_NAME", None)
    with (
        open(log, "wb") as errors,
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # Tests that a script runs in the background have Ctrl-C ignored, and so would their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process,
    ):
        try:
            line = process.stdout.readline()
            assert line, log.read_text()
            yield Demo(json.loads(line)["url"], process, log)
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 0, log.read_text()
            left = process.stdout.read()
            assert left == "", left
        finally:
            process.kill()


@contextmanager
def running_browser() -> Iterator:
    """Playwright's Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield browser
        browser.close()


def patience(seconds: float) -> float:
    """Milliseconds that a page gets; more on a busy machine, see IGPT_PATIENCE."""
    return 1000 * seconds * float(os.environ.get("IGPT_PATIENCE", "1"))


def wait_until(check, seconds: float = 20) -> None:
    """Waits for something that isn't on a page."""
    end = time.monotonic() + patience(seconds) / 1000
    while not check():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
