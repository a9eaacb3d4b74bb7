"""Trains an Image GPT from images: fits a palette if need be, tokenizes, pretrains, and leaves a checkpoint folder.

hf-igpt pretrain digits
accelerate launch scripts/pretrain.py recipes/cifar10-cpu.yaml --output_dir outputs/mine

Run again with the same options, it goes on where it was interrupted and redoes nothing that is finished.
"""

from hf_igpt.arguments import parse_arguments
from hf_igpt.commands.running import run_command, use_cpu_threads
from hf_igpt.training.arguments import PretrainArguments


def parse(argv: list[str] | None = None) -> PretrainArguments:
    """The options of pretrain, checked."""
    arguments = parse_arguments(PretrainArguments, __doc__, argv)
    arguments.check()
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hf-igpt pretrain`."""
    run_command(_main, argv)


def _main(argv: list[str] | None) -> None:
    arguments = parse(argv)
    from hf_igpt.commands.publishing import publish_run, publishing_target
    from hf_igpt.processes import process_state
    from hf_igpt.training.pretraining import pretrain

    state = process_state()
    use_cpu_threads(arguments.cpu_threads)
    target = publishing_target(arguments, state.is_main_process)
    pretrain(arguments)
    if target is not None and state.is_main_process:
        publish_run(target, arguments.output_dir, arguments.hub_license)


if __name__ == "__main__":
    main()
