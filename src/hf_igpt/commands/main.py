"""The console script `hf-igpt COMMAND ...`."""

import contextlib
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

from hf_igpt.commands.running import run_command


# What each command does, and whether it runs on several devices and is started by accelerate.
COMMANDS = {
    "fit_palette": ("fit a colour palette to images", False),
    "tokenize_dataset": ("turn images into tokens with a palette", False),
    "plan": ("what a pretraining run costs and where it fits, without running it", False),
    "pretrain": ("train a model from images, with a recipe", True),
    "evaluate": ("score held-out images: nats per token, bits per pixel", True),
    "probe": ("what a classifier can read from every layer's frozen features", True),
    "sample": ("draw images and complete held-out ones", False),
    "finetune": ("train a classifier from a checkpoint", True),
    "figure": ("draw the paper's figures from results of probes and fine-tuning", False),
    "convert_checkpoint": ("convert OpenAI's checkpoints and transformers' ImageGPT, or ours back", False),
    "push_to_hub": ("publish a checkpoint with results and a card, or tokenized images", False),
    "demo": ("show a checkpoint in the browser", False),
    "env": ("print what an issue report needs", False),
}


def main(argv: list[str] | None = None) -> None:
    """Runs a command; training and evaluation through `accelerate launch`, with its own configuration if there is."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        print(f"error: unknown command {command!r}\n\n{_usage()}", file=sys.stderr)
        sys.exit(2)
    module = importlib.import_module(f"hf_igpt.commands.{command}")
    if not COMMANDS[command][1]:
        module.main(rest)
        return
    # Wrong options, and --help, end here and don't wait for the launcher.
    run_command(module.parse, rest)
    if importlib.util.find_spec("accelerate") is None:
        print("error: accelerate is not installed: pip install 'hf-igpt[train]'", file=sys.stderr)
        sys.exit(1)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *_launch_defaults()]
    # On a shared machine, threads that spin while they wait slow each other down tenfold.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    with subprocess.Popen([*launch, "-m", f"hf_igpt.commands.{command}", *rest], env=environment) as process:
        sys.exit(_wait(process))


def _wait(process: subprocess.Popen) -> int:
    """
    Exit status of the launcher. SIGTERM and Ctrl-C go on to the processes it has started, which save and end; they are
    waited for, though the launcher may end before them. Then it is 128 and the signal, unless all went well.
    """
    import psutil

    received: list[int] = []
    workers: list[psutil.Process] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        with contextlib.suppress(psutil.NoSuchProcess):
            workers.extend(psutil.Process(process.pid).children())
            for worker in workers:
                worker.send_signal(number)

    ours = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in ours}
    try:
        status = process.wait()
        psutil.wait_procs(workers)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status and received:
        return 128 + received[0]
    return status if status >= 0 else 128 - status


def _launch_defaults() -> list[str]:
    """What `accelerate launch` would warn about choosing by itself, unless the user has configured it."""
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")).expanduser()
    if (cache / "accelerate" / "default_config.yaml").is_file() or os.environ.get("ACCELERATE_CONFIG_FILE"):
        return []
    import torch

    devices = str(max(1, torch.cuda.device_count()))
    choices = ["--num_processes", devices, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*choices, "--multi_gpu"] if devices != "1" else choices


def _usage() -> str:
    lines = [f"  {name:18}{text}" for name, (text, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: hf-igpt COMMAND [RECIPE] [--option value ...]",
            "",
            *lines,
            "",
            "hf-igpt COMMAND --help lists a command's options. A recipe is a YAML file or the name of a shipped one.",
            "For several devices: accelerate launch -m hf_igpt.commands.COMMAND ... (or configure accelerate once).",
        ]
    )


if __name__ == "__main__":
    main()
