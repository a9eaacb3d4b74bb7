"""Draws images from a model, and completes or inpaints held-out ones, unselected, into PNG grids.

hf-igpt sample --model outputs/digits/model
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hf_igpt.arguments import option, parse_arguments
from hf_igpt.commands.running import chosen_device, run_command, use_cpu_threads


@dataclass(kw_only=True)
class SampleArguments:
    """Options of sample."""

    model: str = option("outputs/digits/model", "checkpoint folder or Hub name")
    num_samples: int = option(36, "images to draw; 0 draws none", low=0)
    num_completions: int = option(8, "held-out images to complete, the first of the split; 0 completes none", low=0)
    completions_per_image: int = option(4, "completions of each of them", low=1, only_if=("num_completions", bool))
    rows_kept: int | None = option(
        None, "rows that are given; by default the upper half", low=0, only_if=("num_completions", bool)
    )
    mask: str | None = option(
        None,
        "in place of rows_kept, what is drawn: 'center', a square of half the side, or a file of the grid's size, "
        "PNG (drawn where not black) or .npy (where not zero); any region with a masked model",
        only_if=("num_completions", bool),
    )
    tokens: str | None = option(
        None,
        "folder of tokenized images to complete; by default 'tokens' beside the checkpoint folder",
        only_if=("num_completions", bool),
    )
    split: str = option("test", "split to complete images of", only_if=("num_completions", bool))
    temperature: float = option(1.0, "logits are divided by it", above=0)
    top_k: int = option(0, "draw from the k likeliest values only; 0 draws from all", low=0)
    top_p: float = option(1.0, "draw from the likeliest values that make up this probability", above=0, high=1)
    num_steps: int | None = option(
        None, "for masked models, passes of the model for an image; by default one for every pixel drawn", low=1
    )
    order: str | None = option(
        None,
        "for masked models, which pixels are drawn first, any or the surest; by default random",
        choices=("random", "confidence"),
    )
    parallel_window: int | None = option(
        None,
        "for next-pixel models, pixels that a pass of the model looks at, forecast and checked: the same images in "
        "fewer passes, which on a CPU take longer in all as a rule; by default every pixel has a pass of its own",
        low=1,
    )
    forecast: str | None = option(
        None,
        "how they are forecast: what the pass before gave, the pixel above, or what the first layers draw; by default "
        "fixed_point",
        choices=("fixed_point", "above", "shallow_exit"),
        only_if=("parallel_window", bool),
    )
    exit_layer: int | None = option(
        None,
        "how many layers draw the forecast; by default a quarter of them",
        low=1,
        only_if=("forecast", lambda forecast: forecast == "shallow_exit"),
    )
    batch_size: int | None = option(
        None, "images at once; by default as many as pay, up to 32 on a CPU and 256 on a GPU", low=1
    )
    seed: int = option(0, "seed of the samples", low=0, high=2**31 - 1)
    output_dir: str | None = option(None, "folder for the grids; by default 'samples-final' beside the checkpoint")
    device: str = option("auto", "auto takes a GPU where there is one", choices=("auto", "cpu", "cuda", "mps"))
    dtype: str = option(
        "auto",
        "numbers that the model computes with; auto takes bfloat16 on an NVIDIA GPU, float32 elsewhere",
        choices=("auto", "float32", "bfloat16"),
    )
    cpu_threads: int | None = option(None, "threads on a machine without a GPU; by default all cores", low=1)


def parse(argv: list[str] | None = None) -> SampleArguments:
    """The options of sample, checked."""
    return parse_arguments(SampleArguments, __doc__, argv)


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hf-igpt sample`."""
    run_command(_main, argv)


def _main(argv: list[str] | None) -> None:
    arguments = parse(argv)
    if not arguments.num_samples and not arguments.num_completions:
        raise ValueError("`num_samples` and `num_completions` are both 0: there is nothing to draw.")
    if arguments.mask is not None and arguments.rows_kept is not None:
        raise ValueError("`mask` and `rows_kept` both say what is drawn: give one of them.")
    device = chosen_device(arguments.device)

    from hf_igpt.commands.checkpoints import beside, load_checkpoint
    from hf_igpt.results import print_results, read_results, write_results
    from hf_igpt.stages import is_finished, write_stage
    from hf_igpt.storage import check_writable, staged_folder

    use_cpu_threads(arguments.cpu_threads)
    model, processor, digest = load_checkpoint(arguments.model)
    settings = _settings(arguments, model)
    region = _region(arguments, model) if arguments.num_completions else None
    given = _given_images(arguments, model, processor) if arguments.num_completions else None
    folder = Path(arguments.output_dir or beside(arguments.model, "samples-final"))
    made_from = {"weights": digest, "given": given and given._fingerprint, **asdict(arguments)}
    for name in ("model", "tokens", "output_dir", "cpu_threads"):
        made_from.pop(name)
    if arguments.mask is not None:
        made_from["mask"] = _digest(region)
    if not is_finished(folder, made_from):
        check_writable(folder.parent)
        model, started = model.to(device, drawing_dtype(arguments.dtype, device)), time.perf_counter()
        with staged_folder(folder, overwrite=True) as staged:
            if arguments.num_samples:
                _draw_samples(arguments.num_samples, model, processor, staged / "samples.png", settings)
            if given is not None:
                picture = staged / ("completions.png" if arguments.mask is None else "inpainted.png")
                _draw_completions(given, region, arguments.completions_per_image, model, processor, picture, settings)
            write_stage(staged, made_from)
            write_results(
                staged,
                metrics={},
                seeds={"seed": arguments.seed},
                arguments=asdict(arguments),
                wall_seconds=time.perf_counter() - started,
                model_sha256=digest,
            )
    print_results(read_results(folder))


def _settings(arguments: SampleArguments, model) -> dict:
    """The options of drawing that this kind of model takes."""
    settings = {name: getattr(arguments, name) for name in ("batch_size", "seed", "temperature", "top_k", "top_p")}
    own = {"masked": ("num_steps", "order"), "next-pixel": ("parallel_window", "forecast", "exit_layer")}
    kind = "next-pixel" if model.config.is_causal else "masked"
    for others, names in own.items():
        given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
        if given and others != kind:
            raise ValueError(
                f"`{next(iter(given))}` has no effect: {arguments.model} is a {kind} model. Leave it out."
            )
        settings |= given
    return settings


def drawing_dtype(name: str, device: str):
    """The `torch.dtype` that `dtype` stands for on a device."""
    import torch

    if name == "auto":
        name = "bfloat16" if device == "cuda" else "float32"
    return getattr(torch, name)


def _region(arguments: SampleArguments, model):
    """What is drawn of the given images, bool of shape (height, width); refused where the model can't draw it."""
    from hf_igpt.regions_igpt import center_square, prefix_lengths, read_region, rows_below, token_mask

    grid = model.config.grid
    if arguments.mask is None:
        return rows_below(grid[0] // 2 if arguments.rows_kept is None else arguments.rows_kept, grid)
    region = center_square(grid) if arguments.mask == "center" else read_region(arguments.mask, grid)
    if model.config.is_causal:
        prefix_lengths(token_mask(region, model.config, 1))
    return region


def _digest(region) -> str:
    """What identifies a mask, whatever file it came from."""
    import hashlib

    return hashlib.sha256(region.tobytes()).hexdigest()


def _given_images(arguments: SampleArguments, model, processor):
    """The tokenized images to complete, a `datasets.Dataset`."""
    from hf_igpt.commands.checkpoints import beside, load_matching_tokens

    tokens = load_matching_tokens(arguments.tokens or beside(arguments.model, "tokens"), model, processor)
    if arguments.split not in tokens:
        raise ValueError(f"There is no split {arguments.split!r}, only {', '.join(tokens)}.")
    split = tokens[arguments.split]
    return split.select(range(min(arguments.num_completions, len(split))))


def _draw_samples(num_samples: int, model, processor, picture: Path, settings: dict) -> None:
    from tqdm.auto import tqdm

    from hf_igpt.generation import sample
    from hf_igpt.plots import image_grid, save_png

    with tqdm(total=num_samples, desc="Sampling") as bar:
        drawn = sample(model, num_samples, progress=bar.update, **settings)
    save_png(image_grid(processor.decode(drawn)), picture)


def _draw_completions(given, region, per_image: int, model, processor, picture: Path, settings: dict) -> None:
    from tqdm.auto import tqdm

    from hf_igpt.data.token_store import token_rows
    from hf_igpt.generation import inpaint
    from hf_igpt.plots import completion_grid, hide_region, save_png

    given = token_rows(given)
    with tqdm(total=len(given) * per_image, desc="Completing") as bar:
        drawn = inpaint(model, given, region, num_samples=per_image, progress=bar.update, **settings)
    originals = processor.decode(given)
    parts = [hide_region(image, region) for image in originals]
    grid = completion_grid(parts, [processor.decode(images) for images in drawn], originals)
    save_png(grid, picture)


if __name__ == "__main__":
    main()
