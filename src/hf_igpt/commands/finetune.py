"""Fine-tunes a checkpoint into a classifier, with the class loss and the pretraining's together, and leaves a folder
that `pipeline("image-classification")` takes; or trains the same model from scratch, as the baseline.

hf-igpt finetune --model outputs/digits/model --augmentation crop --augmentation_padding 1
accelerate launch scripts/finetune.py recipes/cifar10-finetune.yaml --from_scratch --output_dir outputs/scratch

Run again with the same options, it goes on where it was interrupted and redoes nothing that is finished. Everything is
chosen on validation; test is read once.
"""

from hf_igpt.arguments import parse_arguments
from hf_igpt.commands.running import run_command, use_cpu_threads
from hf_igpt.training.finetune_arguments import FinetuneArguments


def parse(argv: list[str] | None = None) -> FinetuneArguments:
    """The options of finetune, checked."""
    arguments = parse_arguments(FinetuneArguments, __doc__, argv)
    arguments.check()
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hf-igpt finetune`."""
    run_command(_main, argv)


def _main(argv: list[str] | None) -> None:
    arguments = parse(argv)
    from hf_igpt.commands.checkpoints import checkpoint_record, labelled_tokens, load_checkpoint
    from hf_igpt.commands.publishing import publish_run, publishing_target
    from hf_igpt.processes import process_state
    from hf_igpt.training.finetuning import Checkpoint, finetune

    state = process_state()
    use_cpu_threads(arguments.cpu_threads)
    target = publishing_target(arguments, state.is_main_process)
    name = arguments.model
    needs_head = not arguments.from_scratch and arguments.generative_loss_weight != 0
    model, processor, digest = load_checkpoint(name, needs_head=needs_head)
    checkpoint = Checkpoint(name, model, processor, digest, checkpoint_record(name, model, digest))
    finetune(arguments, checkpoint, lambda folder: labelled_tokens(arguments, name, model, processor, folder, state))
    if target is not None and state.is_main_process:
        publish_run(target, arguments.output_dir, arguments.hub_license)


if __name__ == "__main__":
    main()
