"""
FSDP2 on processes of a CPU. torch shards there; accelerate asks for a GPU before it makes its FSDP plugin, so it is
told that these processes are such. All else is what runs on GPUs: its plugin from the launcher's environment, the
wrapping of blocks, Trainer's own way through a sharded training.
"""

import os
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from hf_igpt.commands.main import configuration


def launch_environment(name: str, *flags: str) -> dict[str, str]:
    """What `accelerate launch --config_file` with a configuration of ours puts into the processes' environment."""
    arguments = ["--num_processes", "2", *flags, "--config_file", configuration(name), str(Path("train.py"))]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    environment = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in environment.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def shard_on_cpu(environment: dict[str, str]) -> None:
    """Lets this process shard as its launcher would have told it."""
    from hf_igpt.training import sharding

    os.environ |= environment
    make_state = AcceleratorState.__init__

    def make_state_of_gpus(self, *arguments, **options):
        if PartialState._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        make_state(self, *arguments, **options)

    AcceleratorState.__init__ = make_state_of_gpus
    sharding.use_cpu = lambda: False
