"""What stops a run from outside: signals, lost processes, full disks, other runs; and the stages before it."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hf_igpt.arguments import fields_without_effect
from hf_igpt.commands import running
from hf_igpt.commands.main import _launch
from hf_igpt.storage import work_lock
from hf_igpt.training.arguments import PretrainArguments
from hf_igpt.training.errors import LostProcessError, TrainingInterrupted
from hf_igpt.training.finetune_arguments import FinetuneArguments
from hf_igpt.training.interruption import StopSignals
from hf_igpt.training.run_folder import CHANGEABLE, check_owner, run_folder, run_identity


def outcomes(answer: dict) -> set[str]:
    assert answer["trials"]
    return {trial["outcome"] for trial in answer["trials"]}


# Signals


@pytest.mark.parametrize(("processes", "trials"), [(1, 3), (2, 1)])
def test_a_signal_ends_training_after_a_whole_step_that_is_saved(harness, tmp_path, processes, trials):
    answer = harness("signal_trials", tmp_path, trials=trials, processes=processes)
    assert all(outcome.startswith("ok: stopped with step") for outcome in outcomes(answer)), answer


@pytest.fixture
def heeds_ctrl_c():
    """What runs in the background of a shell ignores Ctrl-C, and so do the tests there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_ends_at_once_and_the_handlers_come_back(heeds_ctrl_c):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT, "a launcher passes on what the terminal has sent"
        signals._since -= 2
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_that_is_ignored_stays_so(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.received == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (TrainingInterrupted(signal.SIGTERM, "step 7 is saved"), 143, "SIGTERM ended training: step 7 is saved"),
        (TrainingInterrupted(signal.SIGINT, "step 7 is saved"), 130, "SIGINT ended training"),
        (LostProcessError("Process 0 lost another one"), 3, None),
        (ValueError("image 3 is damaged"), 1, "image 3 is damaged"),
        (KeyError("a bug"), None, "KeyError: 'a bug'"),
    ],
)
def test_exit_codes_and_what_a_launcher_is_told(tmp_path, monkeypatch, capsys, error, code, told):
    """torchrun shows in the end what the first process has told it: one that lost another has nothing to tell."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))

    def fail(argv):
        raise error

    with pytest.raises(SystemExit if code else KeyError) as end:
        running.run_command(fail, [])
    if code:
        assert end.value.code == code
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert (tmp_path / "error.json").exists() == (told is not None)
    if told is not None:
        message = json.loads((tmp_path / "error.json").read_text())["message"]
        assert told in message["message"] and told in message["extraInfo"]["py_callstack"]


WORKER = """
import pathlib, signal, sys, time
def end(number, frame):
    time.sleep(0.3)
    pathlib.Path(sys.argv[1], "ended").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(30)
"""
LAUNCHER = (
    "import subprocess, sys; sys.exit(1 if subprocess.run([sys.executable, '-c', *sys.argv[1:]]).returncode else 0)"
)


def test_the_console_script_passes_sigterm_on_and_waits_for_the_end(tmp_path):
    def send() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send).start()
    assert _launch(lambda: subprocess.Popen([sys.executable, "-c", LAUNCHER, WORKER, str(tmp_path)])) == 143
    assert (tmp_path / "ended").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_launcher_that_has_started_nothing_yet_ends_with_the_signal(heeds_ctrl_c, number):
    def start() -> subprocess.Popen:
        launcher = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
        threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
        return launcher

    started = time.monotonic()
    assert _launch(start) == 128 + number
    assert time.monotonic() - started < 20


def test_a_signal_while_the_launcher_is_started_reaches_it(heeds_ctrl_c):
    def start() -> subprocess.Popen:
        signal.raise_signal(signal.SIGTERM)
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])

    assert _launch(start) == 143


# Processes


@pytest.mark.parametrize(("fault", "rank"), [("dies", 1), ("raises", 0), ("hangs", 1)])
def test_one_process_that_is_lost_ends_the_other_within_the_limit(harness, tmp_path, fault, rank):
    answer = harness("lost_process", tmp_path, fault=fault, rank=rank)
    assert outcomes(answer) == {"ok"} and answer["newest"] == 2, answer
    assert "look for its own error" in answer["other"]["message"]
    assert answer["other"]["seconds"] < 40


def test_one_bad_batch_on_one_process_spoils_the_evaluation_on_all(harness, tmp_path):
    results = harness("spoilt_evaluation", tmp_path)["results"]
    assert [status for status, _ in results] == [0, 0]
    assert all("The likelihood of image 5 is nan" in result.get("message", "") for _, result in results), results


# A full disk


@pytest.mark.parametrize(("processes", "every"), [(1, 16), (2, 40)])
def test_full_disk_from_a_write_on(harness, tmp_path, processes, every):
    answer = harness("full_disk_points", tmp_path, processes=processes, every=every)
    assert answer["writes"] > every and outcomes(answer) == {"ok"}, answer


# Other runs


def test_a_second_trainer_in_one_folder_ends_at_once(harness, tmp_path):
    answer = harness("second_start", tmp_path)
    (first, _), (second, said) = answer["ends"]
    assert (first, second) == (0, 0) and answer["newest"] == 6
    assert "in use by run Holding (process" in said["message"]


@pytest.mark.parametrize("kind", [PretrainArguments, FinetuneArguments])
def test_each_argument_that_changes_alone_is_named_unless_it_changes_no_number(tmp_path, kind):
    arguments = kind()
    with run_folder(tmp_path / "run", run_identity(arguments)):
        pass
    names = [field.name for field in dataclasses.fields(arguments)]
    assert CHANGEABLE - {"save_steps", "sample_steps", "num_proc"} <= {*names}
    free = CHANGEABLE | fields_without_effect(arguments)
    assert ("full_attention_every" in free) == (kind is PretrainArguments)
    for name in names:
        changed = dataclasses.replace(arguments)
        object.__setattr__(changed, name, "something else")
        if name in free:
            check_owner(tmp_path / "run", run_identity(changed))
        else:
            with pytest.raises(ValueError, match=rf"belongs to another run: {name} was .* is now 'something else'\."):
                check_owner(tmp_path / "run", run_identity(changed))


def test_a_run_of_a_version_without_an_argument_goes_on_where_that_has_no_effect(tmp_path):
    identity = run_identity(PretrainArguments(preset="igpt-s"))
    assert identity["hidden_size"] == "no effect"
    older = identity | {"hidden_size": 512}
    del older["full_attention_every"], older["attention_window_rows"], older["token_kind"]
    with run_folder(tmp_path / "run", older):
        pass
    mark = (tmp_path / "run" / "run.json").read_bytes()
    for _ in range(2):
        with run_folder(tmp_path / "run", identity):
            pass
    assert (tmp_path / "run" / "run.json").read_bytes() == mark
    windows = run_identity(PretrainArguments(preset="igpt-s", attention_window_rows=4))
    with pytest.raises(ValueError, match="belongs to another run: attention_window_rows was None and is now 4"):
        check_owner(tmp_path / "run", windows)
    levels = run_identity(PretrainArguments(preset="igpt-s", token_kind="rgb"))
    with pytest.raises(ValueError, match="token_kind was 'palette' and is now 'rgb'"):
        check_owner(tmp_path / "run", levels)
    sizes = run_identity(PretrainArguments(hidden_size=64))
    with pytest.raises(ValueError, match=r"run: preset was 'igpt-s' and is now None\."):
        check_owner(tmp_path / "run", sizes)


# Stages of data


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("palette", {}),
        ("tokens", {}),
        ("tokens", {"num_proc": 4}),
        ("tokens", {"processes": 2}),
        ("features", {}),
        ("features", {"processes": 2}),
    ],
)
def test_a_killed_stage_is_made_again_with_the_same_bytes(harness, tmp_path, stage, options):
    answer = harness("killed_stage", tmp_path, stage=stage, trials=1, seed=3, **options)
    assert outcomes(answer) == {"ok"}, answer


@pytest.mark.parametrize("stage", ["tokens", "palette"])
def test_two_processes_that_make_the_same_end_with_equal_data(harness, tmp_path, stage):
    assert outcomes(harness("stage_made_twice", tmp_path, stage=stage)) == {"ok"}


def test_who_waits_for_a_lock_gets_it_when_the_first_is_done(tmp_path):
    order = []

    def second() -> None:
        with work_lock(tmp_path / "tokens"):
            order.append("second")

    thread = threading.Thread(target=second)
    with work_lock(tmp_path / "tokens"):
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["tokens", "features"])
def test_a_changed_byte_or_a_cut_in_stored_data_is_found(harness, tmp_path, kind):
    assert outcomes(harness(f"damaged_{kind}", tmp_path, trials=24)) == {"found"}


def test_scratch_of_a_killed_run_is_cleared(tmp_path):
    from hf_igpt.storage import scratch_folder

    (left := tmp_path / ".partial-scratch-tokens").mkdir()
    (left / "half").touch()
    with scratch_folder(tmp_path / "tokens") as scratch:
        assert list(Path(scratch).iterdir()) == []
    assert list(tmp_path.iterdir()) == []
