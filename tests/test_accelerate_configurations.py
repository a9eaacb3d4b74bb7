"""Configurations for `accelerate launch`: its own class reads each, and what they name exists."""

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

from hf_igpt import modeling_igpt
from hf_igpt.commands import main
from hf_igpt.commands.main import CONFIGURATIONS, configuration


ROOT = Path(__file__).parents[1]
FILES = sorted(CONFIGURATIONS.glob("*.yaml"))
NAMES = [path.stem for path in FILES]
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "ddp-2-machines": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "tpu": DistributedType.XLA,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_it(name):
    loaded = load_config_from_file(configuration(name))
    assert isinstance(loaded, ClusterConfig)
    assert loaded.distributed_type == KINDS[name]
    # Another value would override the recipe's `precision` where that is fp32.
    assert loaded.mixed_precision == "no"
    assert loaded.num_machines == (2 if name == "ddp-2-machines" else 1)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_header_says_command_purpose_and_whether_it_was_run(path):
    assert path.stem in KINDS
    header = [line for line in path.read_text().splitlines() if line.startswith("#")][:3]
    command, purpose, run = header
    assert command.startswith(f"# Command: accelerate launch --config_file recipes/accelerate/{path.name} ")
    assert re.search(r"scripts/pretrain\.py RECIPE|-m hf_igpt\.commands\.pretrain RECIPE", command)
    assert purpose.startswith("# For: ")
    was_run = path.stem in ("ddp", "fsdp2")
    assert run.startswith("# Run: ") and (run != "# Run: not run.") == was_run and ("a CPU" in run) == was_run
    assert (ROOT / "recipes/accelerate" / path.name).resolve() == path.resolve()


def test_blocks_are_what_fsdp_shards():
    config = load_config_from_file(configuration("fsdp2")).fsdp_config
    assert config["fsdp_version"] == 2 and config["fsdp_activation_checkpointing"] is True
    name = config["fsdp_transformer_layer_cls_to_wrap"]
    assert [name] == modeling_igpt.ImageGPTPreTrainedModel._no_split_modules
    assert isinstance(getattr(modeling_igpt, name), type)


def test_zero_keeps_what_resuming_and_saving_need():
    assert load_config_from_file(configuration("zero2")).deepspeed_config["zero_stage"] == 2
    three = load_config_from_file(configuration("zero3")).deepspeed_config
    assert three["zero_stage"] == 3 and three["zero3_save_16bit_model"] is True


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """What the console script gives to the launcher, for words before `pretrain digits`."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    commands = []

    class Launcher:
        def __init__(self, command, env):
            commands.append(command)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def wait(self):
            return 0

    monkeypatch.setattr(main.subprocess, "Popen", Launcher)

    def launch(*words: str) -> list[str]:
        with pytest.raises(SystemExit, match="0"):
            main.main([*words, "pretrain", "digits", "--max_steps", "2"])
        command = commands.pop()
        at = command.index("-m", 3)
        assert command[at:] == ["-m", "hf_igpt.commands.pretrain", "digits", "--max_steps", "2"]
        return command[command.index("--quiet") + 1 : at]

    return launch


def test_the_console_script_passes_configurations_on_by_name_and_by_path(launched, tmp_path):
    assert launched("--config_file", "ddp", "--num_processes", "2") == [
        "--config_file",
        str(CONFIGURATIONS / "ddp.yaml"),
        "--num_processes",
        "2",
    ]
    assert launched("--config-file=fsdp2")[:2] == ["--num_processes", "1"]
    # One that says how many processes there are is believed.
    assert launched("--config_file", "ddp-2-machines", "--machine_rank", "1")[-2:] == ["--machine_rank", "1"]
    assert "--num_processes" not in launched("--config_file", "ddp-2-machines")
    (tmp_path / "mine.yaml").write_text("num_processes: 3\n")
    assert launched("--config_file", str(tmp_path / "mine.yaml")) == ["--config_file", str(tmp_path / "mine.yaml")]


def test_the_console_script_chooses_where_nothing_is_said(launched, tmp_path):
    defaults = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    assert launched() == ["--num_processes", "1", *defaults]
    assert launched("--num_processes", "2") == ["--num_processes", "2", *defaults, "--multi_gpu"]
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate/default_config.yaml").write_text("num_processes: 3\n")
    assert launched() == []


def test_words_for_the_launcher_before_a_command_that_has_none(capsys):
    with pytest.raises(SystemExit, match="2"):
        main.main(["--num_processes", "2", "sample"])
    assert "sample runs in one process: leave out what stands before it" in capsys.readouterr().err
