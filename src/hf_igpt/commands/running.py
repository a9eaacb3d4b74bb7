"""What every command does around its work: exit codes, error messages, logging, the main process."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable


FAILURE = 1
# Another process of the group ended, and told why.
LOST_PROCESS = 3
INTERRUPTED = 130
# Extras of pyproject.toml by the module that is missing without them.
_EXTRAS = {
    "accelerate": "train",
    "datasets": "train",
    "gradio": "demo",
    "matplotlib": "train",
    "sklearn": "train",
    "yaml": "train",
    "tensorboard": "tracking",
    "tensorflow": "tensorflow",
}


def run_command(main: Callable[[list[str] | None], object], argv: list[str] | None = None) -> None:
    """
    Runs a command's `main` and ends the process: 0 when everything asked for exists, 1 for what the user can mend and
    for training that had to stop, with the cause as the last line on stderr, 130 on Ctrl-C, 143 on SIGTERM while a
    model trains. Anything else is a bug and keeps its traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "datasets", "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        main(argv)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to continue", INTERRUPTED)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        _fail(f"{error.name} is not installed: pip install 'hf-igpt[{extra}]'")
    except (ValueError, OSError) as error:
        _fail(str(error))
    except RuntimeError as error:
        if (message := _explanation(error)) is None:
            _tell_launcher(f"{type(error).__name__}: {error}")
            raise
        _fail(message, _exit_code(error))
    except Exception as error:
        _tell_launcher(f"{type(error).__name__}: {error}")
        raise


def use_cpu_threads(threads: int | None) -> None:
    """
    Without a GPU, gives this process its share of the cores, or as many threads as asked. Launchers leave each process
    one thread, which on a machine without a GPU wastes the rest.
    """
    import torch

    if torch.cuda.is_available():
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, cores // processes))


def chosen_device(name: str) -> str:
    """
    The device that "auto", "cpu", "cuda" or "mps" stands for on this machine.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there[name]:
        found = ", ".join(device for device, is_there in there.items() if is_there)
        raise ValueError(f"`device` {name!r} is not there: this machine has {found}.")
    return name


def _explanation(error: RuntimeError) -> str | None:
    """What the user can do about an error that isn't a bug; None for a bug."""
    from hf_igpt.training.errors import TrainingStopped, is_out_of_memory

    if isinstance(error, TrainingStopped):
        return str(error)
    if is_out_of_memory(error):
        return f"out of memory: lower `--batch_size`, of pretrain `--per_device_eval_batch_size`. {error}"
    return None


def _exit_code(error: RuntimeError) -> int:
    from hf_igpt.training.errors import LostProcessError, TrainingInterrupted

    if isinstance(error, TrainingInterrupted):
        return 128 + error.signal
    return LOST_PROCESS if isinstance(error, LostProcessError) else FAILURE


def _tell_launcher(message: str) -> None:
    """torchrun and accelerate end with the first cause that a process has told them, whatever others print later."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        from hf_igpt.redaction import redact
        from hf_igpt.storage import write_bytes

        extra = {"timestamp": str(int(time.time())), "py_callstack": redact(message)}
        content = {"message": {"message": redact(message), "extraInfo": extra}}
        write_bytes(path, json.dumps(content).encode())


def _fail(message: str, code: int = FAILURE) -> None:
    from hf_igpt.redaction import redact

    sys.stdout.flush()
    _close_progress_bars()
    if code != LOST_PROCESS:
        _tell_launcher(message)
    # On one line whatever libraries put into it: the last line is the cause.
    print(f"error: {' '.join(redact(message).split())}", file=sys.stderr, flush=True)
    sys.exit(code)


def _close_progress_bars() -> None:
    """Open ones would draw themselves once more below the message when the process ends."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()
