"""The console script `hf-igpt COMMAND ...`; what stands before the command goes to `accelerate launch`."""

import contextlib
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from hf_igpt.arguments import SHIPPED_RECIPES
from hf_igpt.commands.running import run_command


CONFIGURATIONS = SHIPPED_RECIPES / "accelerate"

# What each command does, and whether it runs on several devices and is started by accelerate.
COMMANDS = {
    "fit_palette": ("fit a colour palette to images", False),
    "tokenize_dataset": ("turn images into tokens: colours of a palette, RGB levels or codes of a VQ-VAE", False),
    "plan": ("what a pretraining run costs and where it fits, without running it", False),
    "train_vqvae": ("train a VQ-VAE, whose codes can take the place of a palette's colours", True),
    "pretrain": ("train a model from images, with a recipe", True),
    "evaluate": ("score held-out images: nats per token, bits per pixel, bits/dim", True),
    "probe": ("what a classifier can read from every layer's frozen features", True),
    "palette_sweep": ("the same small model with palettes of several sizes: what a colour is worth", True),
    "sample": ("draw images and complete held-out ones", False),
    "finetune": ("train a classifier from a checkpoint", True),
    "figure": ("draw the paper's figures from results of probes and fine-tuning", False),
    "convert_checkpoint": ("convert OpenAI's checkpoints and transformers' ImageGPT, or ours back", False),
    "push_to_hub": ("publish a checkpoint with results and a card, or tokenized images", False),
    "demo": ("show a checkpoint in the browser", False),
    "env": ("print what an issue report needs", False),
}
# Run in one process, unless something for the launcher stands before them.
SHARED_BY_PROCESSES = ("fit_palette", "tokenize_dataset")


def main(argv: list[str] | None = None) -> None:
    """Runs a command; training and evaluation through `accelerate launch`, with its own configuration if there is."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    at = next((at for at, word in enumerate(arguments) if word in COMMANDS), 0)
    launcher, command, rest = arguments[:at], arguments[at], arguments[at + 1 :]
    if command not in COMMANDS:
        _end(f"unknown command {command!r}")
    is_launched = COMMANDS[command][1]
    if launcher and not is_launched and command not in SHARED_BY_PROCESSES:
        _end(f"{command} runs in one process: leave out what stands before it, {' '.join(launcher)}")
    module = importlib.import_module(f"hf_igpt.commands.{command}")
    if not launcher and not is_launched:
        module.main(rest)
        return
    # Wrong options, and --help, end here and don't wait for the launcher.
    run_command(module.parse, rest)
    if importlib.util.find_spec("accelerate") is None:
        print("error: accelerate is not installed: pip install 'hf-igpt[train]'", file=sys.stderr)
        sys.exit(1)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *_launcher_flags(launcher)]
    # On a shared machine, threads that spin while they wait slow each other down tenfold.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    words = [*launch, "-m", f"hf_igpt.commands.{command}", *rest]
    sys.exit(_launch(lambda: subprocess.Popen(words, env=environment)))


def _launch(start: Callable[[], subprocess.Popen]) -> int:
    """
    Exit status of the launcher. SIGTERM and Ctrl-C go on to the processes it has started, which save and end; they are
    waited for, though the launcher may end before them. One that has started none yet gets the signal itself. Then the
    status is 128 and the signal, unless all went well.
    """
    import psutil

    received: list[int] = []
    workers: list[psutil.Process] = []
    process: subprocess.Popen | None = None

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        if process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(process.pid)
            workers.extend(launcher.children())
            for receiver in workers or [launcher]:
                receiver.send_signal(number)

    ours = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in ours}
    try:
        with start() as process:
            if received:
                process.send_signal(received[0])
            status = process.wait()
            psutil.wait_procs(workers)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status and received:
        return 128 + received[0]
    return status if status >= 0 else 128 - status


def _end(problem: str) -> NoReturn:
    print(f"error: {problem}\n\n{_usage()}", file=sys.stderr)
    sys.exit(2)


def _launcher_flags(given: list[str]) -> list[str]:
    """
    What `accelerate launch` is told: what the user gave, with a configuration of ours in place of its name; else what
    it would warn about choosing by itself, unless the user has configured it.
    """
    given = [part for word in given for part in _spelt(word)]
    if "--config_file" in given[:-1]:
        at = given.index("--config_file") + 1
        given[at] = configuration(given[at])
        asks_for_number = Path(given[at]).is_file() and "num_processes: -1" in Path(given[at]).read_text()
        return [*(_num_processes(given) if asks_for_number else []), *given]
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")).expanduser()
    if (cache / "accelerate" / "default_config.yaml").is_file():
        return given
    choices = {"--num_machines": "1", "--mixed_precision": "no", "--dynamo_backend": "no"}
    flags = [word for name, value in choices.items() if name not in given for word in (name, value)]
    count = [*_num_processes(given), *given]
    devices = count[count.index("--num_processes") + 1]
    is_several = devices != "1" and not {"--multi_gpu", "--cpu", "--use_fsdp", "--use_deepspeed", "--tpu"} & {*given}
    return [*count, *flags, *(["--multi_gpu"] if is_several else [])]


def _spelt(word: str) -> list[str]:
    """The launcher takes --num-processes=2 too."""
    if not word.startswith("--"):
        return [word]
    name, *value = word.split("=", 1)
    return ["--" + name[2:].replace("-", "_"), *value]


def _num_processes(given: list[str]) -> list[str]:
    if "--num_processes" in given[:-1]:
        return []
    import torch

    return ["--num_processes", str(max(1, torch.cuda.device_count()))]


def configuration(name_or_path: str) -> str:
    """The path of a configuration of accelerate, given by path or, for one of ours, by name."""
    shipped = CONFIGURATIONS / f"{name_or_path}.yaml"
    return str(shipped) if shipped.is_file() and not Path(name_or_path).is_file() else name_or_path


def _usage() -> str:
    lines = [f"  {name:18}{text}" for name, (text, _) in COMMANDS.items()]
    configurations = ", ".join(sorted(path.stem for path in CONFIGURATIONS.glob("*.yaml")))
    return "\n".join(
        [
            "usage: hf-igpt [--launcher_option value ...] COMMAND [RECIPE] [--option value ...]",
            "",
            *lines,
            "",
            "hf-igpt COMMAND --help lists a command's options. A recipe is a YAML file or the name of a shipped one.",
            "What stands before the command goes to `accelerate launch`: --config_file fsdp2, --num_processes 8.",
            f"Configurations that come with the package: {configurations}.",
        ]
    )


if __name__ == "__main__":
    main()
