"""Scores held-out images: a next-pixel model by its exact likelihood in nats per token and bits/dim, a masked one by
its loss at a mask rate and an upper bound on the negative log-likelihood; beside a uniform and a unigram model.

hf-igpt evaluate --model outputs/digits/model
hf-igpt evaluate --model outputs/digits/model --color_density empirical
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_igpt.arguments import option, parse_arguments
from hf_igpt.commands.running import run_command, use_cpu_threads
from hf_igpt.evaluation.color_density import DENSITIES, EMPIRICAL, FIXED_SMOOTHING, UNIFORM


@dataclass(kw_only=True)
class EvaluateArguments:
    """Options of evaluate."""

    model: str = option("outputs/digits/model", "checkpoint folder or Hub name")
    tokens: str | None = option(
        None, "folder that tokenize_dataset or pretrain wrote; by default 'tokens' beside the checkpoint folder"
    )
    split: str = option("test", "split to score, once everything has been chosen on validation")
    color_density: str | None = option(
        None,
        "for next-pixel models of palette tokens, how bits/dim count the colours that a token can stand for: all "
        "equally likely, which is the default, or as frequent as in the training images, which are read again",
        choices=DENSITIES,
    )
    color_smoothing: float | None = option(
        None,
        "what is added to the count of every colour; by default what validation images choose, where these are scored "
        f"or there are none {FIXED_SMOOTHING}",
        above=0,
        only_if=("color_density", EMPIRICAL.__eq__),
    )
    dataset_name: str | None = option(
        None,
        "where the images of the tokens lie, if not where they were when the tokens were made",
        only_if=("color_density", EMPIRICAL.__eq__),
    )
    mask_rate: float | None = option(
        None, "for masked models, probability that a pixel is hidden in the loss; by default 0.15", above=0, high=1
    )
    num_masks: int | None = option(None, "for masked models, masks of every image; by default 8", low=1)
    seed: int | None = option(None, "for masked models, seed of the masks; by default 0", low=0, high=2**31 - 1)
    batch_size: int = option(32, "images at once on one device", low=1)
    output_dir: str | None = option(
        None,
        "folder for results.json and the likelihood, or its bound, of every image; by default beside the checkpoint",
    )
    cpu_threads: int | None = option(
        None, "threads of each process on a machine without a GPU; by default its share of the cores", low=1
    )


def parse(argv: list[str] | None = None) -> EvaluateArguments:
    """The options of evaluate, checked."""
    return parse_arguments(EvaluateArguments, __doc__, argv)


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hf-igpt evaluate`."""
    run_command(_main, argv)


def _main(argv: list[str] | None) -> None:
    arguments = parse(argv)
    from hf_igpt.results import print_results

    use_cpu_threads(arguments.cpu_threads)
    if results := evaluate(arguments):
        print_results(results)


def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """
    Does what `hf-igpt evaluate` does and returns the contents of results.json, nothing on the processes but the first.

    Raises:
        ValueError: bad options, tokens of another kind, palette, VQ-VAE or size, or another evaluation in the folder.
    """
    from hf_igpt.commands.checkpoints import beside, load_checkpoint, load_matching_tokens
    from hf_igpt.data.masking import PAPER_RATE
    from hf_igpt.data.options import mask_options
    from hf_igpt.evaluation.masked import NUM_MASKS
    from hf_igpt.processes import process_state
    from hf_igpt.results import read_results
    from hf_igpt.stages import is_finished
    from hf_igpt.storage import check_writable

    state = process_state()
    model, processor, digest = load_checkpoint(arguments.model)
    tokens = load_matching_tokens(arguments.tokens or beside(arguments.model, "tokens"), model, processor)
    if arguments.split not in tokens:
        raise ValueError(f"There is no split {arguments.split!r}, only {', '.join(tokens)}.")
    density = _color_density(arguments, model, processor)
    of_colors = "-empirical" if density == EMPIRICAL else ""
    folder = Path(arguments.output_dir or beside(arguments.model, f"evaluation-{arguments.split}{of_colors}"))
    # The baselines come from train.
    fingerprints = {name: tokens[name]._fingerprint for name in ("train", arguments.split)}
    defaults = {"mask_rate": PAPER_RATE, "num_masks": NUM_MASKS, "seed": 0}
    masks = mask_options(arguments, defaults, model.config.is_causal, arguments.model)
    made_from = {"model": digest, "split": arguments.split, "tokens": fingerprints, **masks}
    made_from |= {"color_density": density, "color_smoothing": arguments.color_smoothing} if density else {}
    done = is_finished(folder, made_from)
    state.wait_for_everyone()
    if not done:
        if state.is_main_process:
            check_writable(folder.parent)
        colors = None
        if density == EMPIRICAL:
            colors = _empirical_colors(arguments, tokens, processor, state)
        _score(arguments, model.to(state.device), processor, tokens, folder, made_from, masks, colors, state)
    return read_results(folder) if state.is_main_process else {}


def _color_density(arguments, model, processor) -> str | None:
    """How the colours are counted; None for models that say nothing of them, which can't use the option."""
    if processor.palette is not None and model.config.is_causal:
        return arguments.color_density or UNIFORM
    if arguments.color_density is not None:
        what = f"has {processor.token_kind} tokens" if model.config.is_causal else "is a masked model"
        raise ValueError(f"`color_density` has no effect: {arguments.model} {what}. Leave it out.")
    return None


def _empirical_colors(arguments, tokens, processor, state):
    """What the colours cost, on the first process; the others wait, and end with it where it can't be had."""
    from hf_igpt.data.token_pixels import source_of_tokens
    from hf_igpt.evaluation.color_density import empirical_color_cost
    from hf_igpt.processes import failing_together

    with failing_together():
        if state.is_main_process:
            source = source_of_tokens(tokens, arguments.dataset_name)
            return empirical_color_cost(source, tokens, processor, arguments.split, arguments.color_smoothing)
    return None


def _score(arguments, model, processor, tokens, folder, made_from, masks, colors, state) -> None:
    import numpy as np
    from tqdm.auto import tqdm

    from hf_igpt.data.token_store import token_meaning
    from hf_igpt.evaluation import baselines, log_likelihood, masked_metrics
    from hf_igpt.results import write_results
    from hf_igpt.stages import write_stage
    from hf_igpt.storage import staged_folder

    split = tokens[arguments.split]
    started = time.perf_counter()
    share = -(-len(split) // state.num_processes) * (2 if masks else 1)
    with tqdm(total=share, desc=f"Scoring {arguments.split}", disable=not state.is_main_process) as bar:
        options = {"batch_size": arguments.batch_size, "progress": bar.update, "processor": processor}
        if masks:
            metrics, likelihood = masked_metrics(model, split, **masks, **options)
        else:
            likelihood = log_likelihood(model, split, **options)
            likelihood = likelihood if colors is None else likelihood.with_colors(colors)
            metrics = likelihood.metrics()
    if not state.is_main_process:
        return
    metrics |= baselines(tokens["train"], split, model.config.num_values)
    with staged_folder(folder, overwrite=True) as staged:
        np.save(staged / "nats_per_image.npy", likelihood.nats_per_image, allow_pickle=False)
        if likelihood.colors is not None and likelihood.colors.nats_per_image is not None:
            np.save(staged / "color_nats_per_image.npy", likelihood.colors.nats_per_image, allow_pickle=False)
        write_stage(staged, made_from)
        write_results(
            staged,
            metrics=metrics,
            arguments=asdict(arguments),
            wall_seconds=time.perf_counter() - started,
            model_sha256=made_from["model"],
            tokens=token_meaning(processor),
            seeds={"masks": masks["seed"]} if masks else None,
        )


if __name__ == "__main__":
    main()
