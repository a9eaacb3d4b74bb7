"""Turns images into tokens, by a palette fitted before, as RGB levels or by a VQ-VAE, and saves every split.

hf-igpt tokenize_dataset --dataset_name digits --palette outputs/palette --output_dir outputs/tokens
hf-igpt tokenize_dataset --dataset_name digits --token_kind rgb --image_size 8 --output_dir outputs/levels/tokens
hf-igpt --num_processes 8 tokenize_dataset --dataset_name outputs/shards/*.tar --streaming --palette outputs/palette

Several processes tokenize a part each; the tokens are the same (codes: up to rounding in the VQ-VAE). The processor of
levels or codes is saved beside the tokens, in the folder `processor`.
"""

from dataclasses import dataclass
from operator import not_
from pathlib import Path
from typing import TYPE_CHECKING

from hf_igpt.arguments import option, parse_arguments
from hf_igpt.commands.running import run_command
from hf_igpt.data.options import ImageOptions, load_source
from hf_igpt.token_kinds_igpt import RGB, VQVAE


if TYPE_CHECKING:
    from accelerate import PartialState

    from hf_igpt import IGPTImageProcessor
    from hf_igpt.data.sources import ImageSource


@dataclass(kw_only=True)
class TokenizeArguments(ImageOptions):
    """Options of tokenize_dataset."""

    palette: str = option(
        "outputs/palette",
        "folder or Hub name of an image processor: a palette or a checkpoint",
        only_if=("token_kind", not_),
    )
    token_kind: str | None = option(
        None, "instead of `palette`, RGB levels or the codes of `vqvae`", choices=(RGB, VQVAE)
    )
    vqvae: str | None = option(
        None, "folder or Hub name of the VQ-VAE, see train_vqvae", only_if=("token_kind", VQVAE.__eq__)
    )
    image_size: list[int] = option(
        [32],
        "side, or height and width, that images are brought to, in pixels",
        low=1,
        high=4096,
        only_if=("token_kind", bool),
    )
    crop_size: int | None = option(
        None, "first crop a centre square of so many pixels", low=1, only_if=("token_kind", bool)
    )
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
    from hf_igpt.data.preparation import prepare_tokens
    from hf_igpt.processes import process_state
    from hf_igpt.results import print_results, read_results

    state = process_state()
    with state.main_process_first():
        source = load_source(arguments)
    processor = _processor(arguments, source, state)
    prepare_tokens(
        arguments.output_dir,
        source,
        processor,
        num_proc=arguments.num_proc,
        skip_damaged=arguments.skip_damaged,
    )
    if state.is_main_process:
        print_results(read_results(arguments.output_dir))


def _processor(arguments: TokenizeArguments, source: "ImageSource", state: "PartialState") -> "IGPTImageProcessor":
    from hf_igpt import IGPTImageProcessor
    from hf_igpt.data.options import grid_size
    from hf_igpt.data.preparation import prepare_fixed
    from hf_igpt.data.token_repository import PROCESSOR

    if arguments.token_kind is None:
        with state.main_process_first():
            return IGPTImageProcessor.from_pretrained(arguments.palette)
    return prepare_fixed(
        Path(arguments.output_dir).parent / PROCESSOR,
        source,
        token_kind=arguments.token_kind,
        vqvae=arguments.vqvae,
        size=grid_size(arguments),
        crop_size=arguments.crop_size,
        skip_damaged=arguments.skip_damaged,
    )


if __name__ == "__main__":
    main()
