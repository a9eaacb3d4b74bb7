"""Shows a checkpoint in the browser: drawing with it, its likelihood, palette and features.

hf-igpt demo
hf-igpt demo --model outputs/cifar10-cpu/model outputs/digits/model

Without a checkpoint it shows outputs/digits/model, which it trains first where it is not there. Ends with Ctrl-C. The
last line on stdout is a JSON object with the address, once the page is there.
"""

import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_igpt.arguments import option, parse_arguments
from hf_igpt.commands.running import chosen_device, run_command, use_cpu_threads


if TYPE_CHECKING:
    from hf_igpt.demo.checkpoints import Checkpoint

DIGITS = "outputs/digits/model"

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class DemoArguments:
    """Options of demo."""

    model: list[str] = option(
        [], f"checkpoint folders or Hub names to choose from; by default {DIGITS}, trained where it is not there"
    )
    host: str | None = option(
        None, "address to listen on; by default 127.0.0.1, this machine alone, or GRADIO_SERVER_NAME where it is set"
    )
    port: int | None = option(None, "port; by default the first free one from 7860 on", low=1, high=65535)
    max_waiting: int = option(32, "requests that may wait for the model; more are refused", low=1, high=1000)
    device: str = option("auto", "auto takes a GPU where there is one", choices=("auto", "cpu", "cuda", "mps"))
    cpu_threads: int | None = option(None, "threads on a machine without a GPU; by default all cores", low=1)


def parse(argv: list[str] | None = None) -> DemoArguments:
    """The options of demo, checked."""
    return parse_arguments(DemoArguments, __doc__, argv)


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hf-igpt demo`."""
    run_command(_main, argv)


def _main(argv: list[str] | None) -> None:
    arguments = parse(argv)
    # Read when Gradio is imported; nothing about the users is sent anywhere.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from hf_igpt.demo.checkpoints import Library
    from hf_igpt.demo.interface import build
    from hf_igpt.demo.serving import launch_options, limit_pixels

    use_cpu_threads(arguments.cpu_threads)
    limit_pixels()
    device = chosen_device(arguments.device)
    names = arguments.model or [_digits()]
    page = build(Library(names, lambda name: open_checkpoint(name, device)), arguments.max_waiting)
    _, url, _ = page.launch(**launch_options(arguments.host, arguments.port), prevent_thread_lock=True)
    print(json.dumps({"url": url, "checkpoints": names}), flush=True)
    logger.info("Open %s in a browser. Ctrl-C ends the demo.", url)
    try:
        # Gradio's own waiting ends with a line on stdout, which belongs to the address.
        threading.Event().wait()
    except KeyboardInterrupt:
        # The usual end, and no failure.
        page.close(verbose=False)


def open_checkpoint(name: str, device: str) -> "Checkpoint":
    """
    A checkpoint with the tokens and the probe results that lie beside it, or in its repository.

    Raises:
        ValueError: the checkpoint is damaged or there is none.
    """
    from hf_igpt.commands.checkpoints import beside, load_checkpoint, load_matching_tokens
    from hf_igpt.demo.checkpoints import Checkpoint

    model, processor, digest = load_checkpoint(name)
    folder = beside(name, "tokens")
    tokens = load_matching_tokens(folder, model, processor) if Path(name).is_dir() and folder.is_dir() else None
    return Checkpoint(name, model.to(device), processor, tokens, _probes(name, digest))


def _probes(name: str, digest: str) -> list[dict]:
    """Results of probes of these weights, a linear probe of single layers first."""
    from hf_igpt.hub.evidence import gather, published

    try:
        found = gather(Path(name), digest) if Path(name).is_dir() else published(name, digest)
    except (ValueError, OSError) as error:
        logger.warning("No results of a probe of %s are shown: %s", name, error)
        return []
    probes = [result.content for result in found if result.kind == "probe"]

    def rank(results: dict) -> tuple[bool, bool]:
        return results["probe"].get("solver") != "lbfgs", results["probe"].get("concatenate", 1) != 1

    return sorted(probes, key=rank)


def _digits() -> str:
    """The digits checkpoint, trained first where it is not there."""
    if not Path(DIGITS).is_dir():
        logger.info("No --model is given and there is no %s: training it, about 3 minutes on 2 cores.", DIGITS)
        train = [sys.executable, "-m", "hf_igpt.commands.main", "pretrain", "digits"]
        # What training prints last would be taken for this command's last line.
        ended = subprocess.run([*train, "--output_dir", str(Path(DIGITS).parent)], stdout=sys.stderr)
        if ended.returncode:
            raise ValueError("The digits model could not be trained, see above: give a checkpoint with --model.")
    return DIGITS


if __name__ == "__main__":
    main()
