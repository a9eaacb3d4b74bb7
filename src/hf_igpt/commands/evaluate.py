"""Scores held-out images in nats per token: a next-pixel model by its exact likelihood, a masked one by its loss at a
mask rate and by an upper bound on the negative log-likelihood; beside a uniform and a unigram model.

hf-igpt evaluate --model outputs/digits/model
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hf_igpt.arguments import option, parse_arguments
from hf_igpt.commands.running import run_command, use_cpu_threads


@dataclass(kw_only=True)
class EvaluateArguments:
    """Options of evaluate."""

    model: str = option("outputs/digits/model", "checkpoint folder or Hub name")
    tokens: str | None = option(
        None, "folder that tokenize_dataset or pretrain wrote; by default 'tokens' beside the checkpoint folder"
    )
    split: str = option("test", "split to score, once everything has been chosen on validation")
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
    from hf_igpt.commands.checkpoints import beside, load_checkpoint, load_matching_tokens
    from hf_igpt.data.masking import PAPER_RATE
    from hf_igpt.data.options import mask_options
    from hf_igpt.evaluation.masked import NUM_MASKS
    from hf_igpt.processes import process_state
    from hf_igpt.results import print_results, read_results
    from hf_igpt.stages import is_finished
    from hf_igpt.storage import check_writable

    state = process_state()
    use_cpu_threads(arguments.cpu_threads)
    model, processor, digest = load_checkpoint(arguments.model)
    tokens = load_matching_tokens(arguments.tokens or beside(arguments.model, "tokens"), model, processor)
    if arguments.split not in tokens:
        raise ValueError(f"There is no split {arguments.split!r}, only {', '.join(tokens)}.")
    folder = Path(arguments.output_dir or beside(arguments.model, f"evaluation-{arguments.split}"))
    # The baselines come from train.
    fingerprints = {name: tokens[name]._fingerprint for name in ("train", arguments.split)}
    defaults = {"mask_rate": PAPER_RATE, "num_masks": NUM_MASKS, "seed": 0}
    masks = mask_options(arguments, defaults, model.config.is_causal, arguments.model)
    made_from = {"model": digest, "split": arguments.split, "tokens": fingerprints, **masks}
    done = is_finished(folder, made_from)
    state.wait_for_everyone()
    if not done:
        if state.is_main_process:
            check_writable(folder.parent)
        _score(arguments, model.to(state.device), tokens, folder, made_from, masks, state)
    if state.is_main_process:
        print_results(read_results(folder))


def _score(arguments, model, tokens, folder, made_from, masks, state) -> None:
    import numpy as np
    from tqdm.auto import tqdm

    from hf_igpt.evaluation import baselines, log_likelihood, masked_metrics
    from hf_igpt.results import write_results
    from hf_igpt.stages import write_stage
    from hf_igpt.storage import staged_folder

    split = tokens[arguments.split]
    started = time.perf_counter()
    share = -(-len(split) // state.num_processes) * (2 if masks else 1)
    with tqdm(total=share, desc=f"Scoring {arguments.split}", disable=not state.is_main_process) as bar:
        options = {"batch_size": arguments.batch_size, "progress": bar.update}
        if masks:
            metrics, likelihood = masked_metrics(model, split, **masks, **options)
        else:
            likelihood = log_likelihood(model, split, **options)
            metrics = likelihood.metrics()
    if not state.is_main_process:
        return
    metrics |= baselines(tokens["train"], split, model.config.num_values)
    with staged_folder(folder, overwrite=True) as staged:
        np.save(staged / "nats_per_image.npy", likelihood.nats_per_image, allow_pickle=False)
        write_stage(staged, made_from)
        write_results(
            staged,
            metrics=metrics,
            arguments=asdict(arguments),
            wall_seconds=time.perf_counter() - started,
            model_sha256=made_from["model"],
            seeds={"masks": masks["seed"]} if masks else None,
        )


if __name__ == "__main__":
    main()
