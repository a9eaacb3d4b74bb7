"""Scores held-out images with a next-pixel model: nats per token and bits per pixel beside the baselines.

hf-igpt evaluate --model outputs/digits/model
"""

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
    batch_size: int = option(32, "images at once on one device", low=1)
    output_dir: str | None = option(
        None, "folder for results.json and the likelihood of every image; by default beside the checkpoint folder"
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
    made_from = {"model": digest, "split": arguments.split, "tokens": fingerprints}
    done = is_finished(folder, made_from)
    state.wait_for_everyone()
    if not done:
        if state.is_main_process:
            check_writable(folder.parent)
        _score(arguments, model.to(state.device), tokens, folder, made_from, state)
    if state.is_main_process:
        print_results(read_results(folder))


def _score(arguments, model, tokens, folder, made_from, state) -> None:
    import numpy as np
    from tqdm.auto import tqdm

    from hf_igpt.evaluation import baselines, log_likelihood
    from hf_igpt.results import write_results
    from hf_igpt.stages import write_stage
    from hf_igpt.storage import staged_folder

    split = tokens[arguments.split]
    share = -(-len(split) // state.num_processes)
    with tqdm(total=share, desc=f"Scoring {arguments.split}", disable=not state.is_main_process) as bar:
        likelihood = log_likelihood(model, split, arguments.batch_size, progress=bar.update)
    if not state.is_main_process:
        return
    metrics = likelihood.metrics() | baselines(tokens["train"], split, model.config.num_values)
    with staged_folder(folder, overwrite=True) as staged:
        np.save(staged / "nats_per_image.npy", likelihood.nats_per_image, allow_pickle=False)
        write_stage(staged, made_from)
        write_results(staged, metrics=metrics, arguments=asdict(arguments), model_sha256=made_from["model"])


if __name__ == "__main__":
    main()
