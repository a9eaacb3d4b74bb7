"""Code in Markdown pages: the fenced blocks, the commands in them, and whether these exist."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from accelerate.commands.launch import launch_command_parser
from docs_scripts import tables
from torch.distributed.run import get_args_parser

from hf_igpt.arguments import parse_arguments
from hf_igpt.commands import plan
from hf_igpt.commands.main import COMMANDS, configuration


ROOT = tables.ROOT
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
FENCE = re.compile(r"^```(\S*)$")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
# What a shell and its usual programs do by themselves.
BUILTINS = ("cd", "git", "set", "source")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page and line, its language, its text, and why it isn't run, where a comment says so."""

    page: Path
    line: int
    language: str
    code: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    lines, found, start = page.read_text().splitlines(), [], None
    for number, line in enumerate(lines):
        if start is None and (fence := FENCE.match(line)):
            start, language = number, fence[1]
        elif start is not None and line == "```":
            mark = NOT_RUN.fullmatch(lines[start - 1]) if start else None
            code = "\n".join(lines[start + 1 : number])
            found.append(Block(page, start + 1, language, code, mark and mark[1]))
            start = None
    assert start is None, f"{page}:{start} has no end"
    return found


def prose_of(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def code_spans(page: Path) -> list[str]:
    """What stands between backticks in the prose."""
    return re.findall(r"`([^`\n]+)`", prose_of(page))


def commands_of(code: str) -> Iterator[list[str]]:
    """The words of each command of a shell script, without variables that are set and comments."""
    for line in re.sub(r"\\\n\s*", "", code).splitlines():
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            while words and re.match(r"\w+=", words[0]):
                words = words[1:]
            if words:
                yield words


def check_command(words: list[str]) -> None:
    """Raises where a command, one of its options or a file it names doesn't exist. Runs in the repository's root."""
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "hf-igpt":
        at = next((at for at, word in enumerate(rest) if word in COMMANDS), 0)
        check_configuration(launch_command_parser().parse_args([*rest[:at], "train.py"]).config_file)
        check_own(*rest[at:])
    elif program == "accelerate":
        assert rest[0] == "launch"
        launched = launch_command_parser().parse_args(rest[1:])
        check_configuration(launched.config_file)
        check_launched(launched.training_script, launched.module, launched.training_script_args)
    elif program == "torchrun":
        launched = get_args_parser().parse_args(rest)
        check_launched(launched.training_script, launched.module, launched.training_script_args)
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), rest
    elif program == "bash":
        # What a script starts is checked in tests/test_runs.py.
        assert (ROOT / rest[0]).parent == ROOT / "runs" and (ROOT / rest[0]).is_file(), rest
    elif program in ("python", "python3"):
        assert rest[0] in ("-m", "-") or (ROOT / rest[0]).is_file(), rest
    elif program == "pip":
        (named,) = (extras for word in rest for extras in re.findall(r"\[([\w,]+)\]", word))
        assert set(named.split(",")) <= EXTRAS, named
    elif program in ("ruff", "typos"):
        pass
    else:
        assert program in BUILTINS, f"unknown program {program}"


def check_configuration(name: str | None) -> None:
    assert name is None or Path(configuration(name)).is_file() or (ROOT / name).is_file(), name


def check_launched(script: str, is_module: bool, words: list[str]) -> None:
    if is_module:
        command = script.removeprefix("hf_igpt.commands.")
        assert command != script
    else:
        command = Path(script).stem
        assert script == f"scripts/{command}.py" and (ROOT / script).is_file()
    check_own(command, *words)


def check_own(command: str, *words: str) -> None:
    """Raises for a command of this package with wrong options, or with a recipe that there isn't."""
    assert command in COMMANDS, command
    if command == "plan" and "--help" not in words:
        plan.parse(list(words))
    elif command != "env" and "--help" not in words:
        parse_arguments(tables.arguments_class(command), "", list(words))


def options() -> set[str]:
    """Flags of all commands, and of the launcher."""
    names = {field for command in COMMANDS if command != "env" for field in vars(tables.arguments_class(command)())}
    launcher = {flag for flag in launch_command_parser()._option_string_actions if flag.startswith("--")}
    return launcher | {"--help", *(f"--{name}" for name in names), *(f"--no-{name}" for name in names)}
