"""Turns images into tokens with a palette that was fitted before, and saves every split.

hf-igpt tokenize_dataset --dataset_name digits --palette outputs/palette --output_dir outputs/tokens
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


def _main(argv: list[str] | None) -> None:
    arguments = parse_arguments(TokenizeArguments, __doc__, argv)
    from hf_igpt import IGPTImageProcessor
    from hf_igpt.data.preparation import prepare_tokens
    from hf_igpt.results import print_results, read_results

    prepare_tokens(
        arguments.output_dir,
        load_source(arguments),
        IGPTImageProcessor.from_pretrained(arguments.palette),
        num_proc=arguments.num_proc,
        skip_damaged=arguments.skip_damaged,
    )
    print_results(read_results(arguments.output_dir))


if __name__ == "__main__":
    main()
