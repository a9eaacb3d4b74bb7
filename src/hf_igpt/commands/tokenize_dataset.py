"""Turns images into tokens with a palette that was fitted before, and saves every split.

hf-igpt tokenize_dataset --dataset_name digits --palette outputs/palette --output_dir outputs/tokens
hf-igpt --num_processes 8 tokenize_dataset --dataset_name outputs/shards/*.tar --streaming --palette outputs/palette

Several processes tokenize a part each; the tokens are the same.
"""

from dataclasses import dataclass
from operator import not_

from hf_igpt.arguments import option, parse_arguments
from hf_igpt.commands.running import run_command
from hf_igpt.data.options import ImageOptions, load_source


@dataclass(kw_only=True)
class TokenizeArguments(ImageOptions):
    """Options of tokenize_dataset."""

    palette: str = option("outputs/palette", "folder or Hub name of an image processor: a palette or a checkpoint")
    output_dir: str = option("outputs/tokens", "folder for the tokenized splits and results.json")
    num_proc: int | None = option(None, "processes that tokenize", low=1, only_if=("streaming", not_))
    skip_damaged: bool = option(False, "leave out unreadable images, counted and named in results.json")


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hf-igpt tokenize_dataset`."""
    run_command(_main, argv)


def parse(argv: list[str] | None = None) -> TokenizeArguments:
    """The options of tokenize_dataset, checked."""
    return parse_arguments(TokenizeArguments, __doc__, argv)


def _main(argv: list[str] | None) -> None:
    arguments = parse(argv)
    from hf_igpt import IGPTImageProcessor
    from hf_igpt.data.preparation import prepare_tokens
    from hf_igpt.processes import process_state
    from hf_igpt.results import print_results, read_results

    state = process_state()
    with state.main_process_first():
        source = load_source(arguments)
        processor = IGPTImageProcessor.from_pretrained(arguments.palette)
    prepare_tokens(
        arguments.output_dir,
        source,
        processor,
        num_proc=arguments.num_proc,
        skip_damaged=arguments.skip_damaged,
    )
    if state.is_main_process:
        print_results(read_results(arguments.output_dir))


if __name__ == "__main__":
    main()
