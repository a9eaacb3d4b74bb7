"""Fits a colour palette to images and saves it as an image processor, with pictures and results.json.

hf-igpt fit_palette --dataset_name digits --image_size 8 --num_colors 16 --output_dir outputs/palette
hf-igpt --num_processes 8 fit_palette --dataset_name outputs/shards/*.tar --streaming --output_dir outputs/palette

Several processes count the colours of a part each; the palette is the same.
"""

from dataclasses import dataclass

from hf_igpt.arguments import option, parse_arguments
from hf_igpt.commands.running import run_command
from hf_igpt.data.options import GridOptions, ImageOptions, grid_size, load_source


@dataclass(kw_only=True)
class FitPaletteArguments(ImageOptions, GridOptions):
    """Options of fit_palette."""

    output_dir: str = option("outputs/palette", "folder for the image processor, pictures and results.json")
    seed: int = option(0, "seed of k-means", low=0)
    skip_damaged: bool = option(False, "leave out unreadable images")


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hf-igpt fit_palette`."""
    run_command(_main, argv)


def parse(argv: list[str] | None = None) -> FitPaletteArguments:
    """The options of fit_palette, checked."""
    return parse_arguments(FitPaletteArguments, __doc__, argv)


def _main(argv: list[str] | None) -> None:
    arguments = parse(argv)
    size = grid_size(arguments)
    from hf_igpt.data.preparation import prepare_palette
    from hf_igpt.processes import process_state
    from hf_igpt.results import print_results, read_results

    state = process_state()
    with state.main_process_first():
        source = load_source(arguments)
    prepare_palette(
        arguments.output_dir,
        source,
        num_colors=arguments.num_colors,
        size=size,
        crop_size=arguments.crop_size,
        seed=arguments.seed,
        skip_damaged=arguments.skip_damaged,
    )
    if state.is_main_process:
        print_results(read_results(arguments.output_dir))


if __name__ == "__main__":
    main()
