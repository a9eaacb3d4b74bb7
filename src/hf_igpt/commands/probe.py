"""Probes every layer of a checkpoint: what a linear classifier or the nearest neighbours can read from frozen
features. Writes accuracies and their curve over layers.

hf-igpt probe --model outputs/digits/model
hf-igpt probe --model outputs/digits/checkpoint-*
hf-igpt probe --model outputs/digits/model --solver sgd

For lbfgs and knn, features are computed once and kept in the folder `features` beside the checkpoint; sgd and
attentive train probes of every layer while the model runs, and keep none. Layer, penalty, learning rate and everything
else is chosen on validation; test is read once.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_igpt.arguments import option, parse_arguments
from hf_igpt.commands.running import run_command, use_cpu_threads
from hf_igpt.data.options import ImageOptions, LabelledImages, mask_options
from hf_igpt.training.online_probe_arguments import ONLINE_SOLVERS, OnlineProbeOptions


if TYPE_CHECKING:
    from hf_igpt.commands.probe_job import ProbeJob

SPLITS = ("train", "validation", "test")
STORED_SOLVERS = ("lbfgs", "knn")
# Options that change where things lie and how fast, and no figure.
_NO_FIGURE = (
    "model",
    "output_dir",
    "features_dir",
    "export",
    "batch_size",
    "per_device_train_batch_size",
    "save_steps",
    "dataloader_num_workers",
    "cpu_threads",
    "tokens",
)


@dataclass(kw_only=True)
class ProbeArguments(OnlineProbeOptions, LabelledImages):
    """Options of probe."""

    model: list[str] = option(["outputs/digits/model"], "checkpoint folders or Hub names, probed one after the other")
    solver: str = option(
        "lbfgs",
        "lbfgs: logistic regression; knn: a weighted vote of the nearest neighbours; sgd: logistic regression trained "
        "while the model runs, for data whose features are too large to store; attentive: the same with a learned "
        "pooling",
        choices=(*STORED_SOLVERS, *ONLINE_SOLVERS),
    )
    norm: str = option("post", "features after the norm as in the paper, or the raw residual", choices=("post", "raw"))
    layers: list[int] | None = option(None, "layers to probe, 0 being the embeddings; by default all", low=0)
    concatenate: int = option(1, "neighbouring layers put side by side, 5 in the paper", low=1)
    standardize: bool = option(True, "give every feature mean 0 and variance 1 over train")
    penalties: list[float] | None = option(
        None,
        "weights of half the squared weights, one chosen on validation; by default 1e-5 to 10 in half decades",
        above=0,
        only_if=("solver", "lbfgs".__eq__),
    )
    refit: bool = option(
        True,
        "fit on train and validation with the chosen penalty before test is read",
        only_if=("solver", "lbfgs".__eq__),
    )
    neighbours: list[int] | None = option(
        None, "numbers of neighbours; by default 10, 20, 100, 200", low=1, only_if=("solver", "knn".__eq__)
    )
    temperature: float = option(
        0.07, "temperature of the neighbours' weights", above=0, only_if=("solver", "knn".__eq__)
    )
    labels_per_class: list[int] | None = option(
        None,
        "also probe the best layer on seeded subsets with so many labels of every class, 4, 25 and 400 in the paper",
        low=1,
        only_if=("solver", "lbfgs".__eq__),
    )
    num_subsets: int = option(5, "subsets of each size", low=1, only_if=("labels_per_class", bool))
    pixels: bool = option(
        False,
        "also probe the pixels that the tokens stand for, as a baseline",
        only_if=("solver", STORED_SOLVERS.__contains__),
    )
    mask_rate: float | None = option(
        None, "for masked models, probability that a pixel is hidden, 0 for none; by default 0.15", low=0, high=1
    )
    num_masks: int | None = option(
        None, "for masked models, masks of every test image that vote together; by default 5", low=1
    )
    seed: int = option(0, "seed of subsets, masks and ties in a vote", low=0, high=2**31 - 1)
    export: str | None = option(
        None,
        "parquet file for the features of all splits and layers, with labels",
        only_if=("solver", STORED_SOLVERS.__contains__),
    )
    features_dir: str | None = option(
        None,
        "folder for features; by default 'features' beside the checkpoint",
        only_if=("solver", STORED_SOLVERS.__contains__),
    )
    batch_size: int | None = option(None, "images at once on one device; by default what suits it", low=1)
    output_dir: str | None = option(None, "folder for results; by default probe-SOLVER-NAME beside the checkpoint")
    cpu_threads: int | None = option(
        None, "threads of each process on a machine without a GPU; by default its share of the cores", low=1
    )


def parse(argv: list[str] | None = None) -> ProbeArguments:
    """The options of probe, checked."""
    arguments = parse_arguments(ProbeArguments, __doc__, argv)
    if len(arguments.model) > 1 and (given := arguments.output_dir or arguments.export):
        raise ValueError(f"With several models each needs an output of its own, got {given}. Leave it out.")
    if arguments.num_train_epochs is not None and arguments.solver not in ONLINE_SOLVERS:
        raise ValueError(f"`num_train_epochs` has no effect with solver {arguments.solver}. Leave it out.")
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hf-igpt probe`."""
    run_command(_main, argv)


def _main(argv: list[str] | None) -> None:
    arguments = parse(argv)
    from hf_igpt.results import print_results

    use_cpu_threads(arguments.cpu_threads)
    for name in arguments.model:
        if results := probe(name, arguments):
            print_results(results)


def probe(name: str, arguments: ProbeArguments) -> dict[str, Any]:
    """
    Does what `hf-igpt probe` does with one checkpoint and returns the contents of results.json, nothing on the
    processes but the first.

    Raises:
        ValueError: bad options or data, or another probe in the folder.
    """
    from hf_igpt.commands.checkpoints import beside, checkpoint_record, labelled_tokens, load_checkpoint
    from hf_igpt.commands.probe_job import ProbeJob
    from hf_igpt.data.classes import class_names, labels_of
    from hf_igpt.data.masking import PAPER_RATE
    from hf_igpt.evaluation.ensembles import ENSEMBLE_MASKS
    from hf_igpt.processes import process_state
    from hf_igpt.results import read_results
    from hf_igpt.stages import is_finished
    from hf_igpt.storage import check_writable

    state = process_state()
    model, processor, digest = load_checkpoint(name, needs_head=False)
    defaults = {"mask_rate": PAPER_RATE, "num_masks": ENSEMBLE_MASKS}
    masks = mask_options(arguments, defaults, model.config.is_causal, name)
    folder = Path(arguments.output_dir or beside(name, f"probe-{arguments.solver}-{Path(name).name}"))
    tokens = labelled_tokens(arguments, name, model, processor, beside(name, _tokens_folder(arguments)), state)
    if lacking := [split for split in SPLITS if split not in tokens]:
        raise ValueError(
            f"Probes need the splits train, validation and test, but the data has no {lacking[0]}. Give a "
            "`validation_fraction` or `test_fraction` with `dataset_name`."
        )
    options = {field: value for field, value in asdict(arguments).items() if field not in _NO_FIGURE}
    made_from = {
        "model": digest,
        "tokens": {split: tokens[split]._fingerprint for split in SPLITS},
        "options": options | masks,
    }
    done = is_finished(folder, made_from) and _export_exists(arguments)
    state.wait_for_everyone()
    if not done:
        if state.is_main_process:
            check_writable(folder.parent)
        names = class_names(tokens)
        labels = {split: labels_of(tokens[split], len(names), split) for split in SPLITS}
        model.to(state.device)
        job = ProbeJob(arguments, name, model, processor, digest, tokens, labels, names, masks, folder, made_from)
        _run(job, checkpoint_record(name, model, digest), state)
    return read_results(folder) if state.is_main_process else {}


def _tokens_folder(arguments: ProbeArguments) -> str:
    """A name for the tokens of the images asked for, so that other images don't meet them."""
    chosen = {field.name: getattr(arguments, field.name) for field in fields(ImageOptions)}
    return f"probe-tokens-{hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]}"


def _export_exists(arguments: ProbeArguments) -> bool:
    return arguments.export is None or Path(arguments.export).is_file()


def _run(job: "ProbeJob", record: dict[str, Any], state: Any) -> None:
    from hf_igpt.commands.probe_job import online_metrics, stored_metrics
    from hf_igpt.data.token_store import tokens_info
    from hf_igpt.figures import save_layer_curve
    from hf_igpt.results import write_results
    from hf_igpt.stages import write_stage
    from hf_igpt.storage import remove_folder, staged_folder

    started, arguments = time.perf_counter(), job.arguments
    metrics = (online_metrics if arguments.solver in ONLINE_SOLVERS else stored_metrics)(job, state)
    if not state.is_main_process:
        return
    with staged_folder(job.folder, overwrite=True) as staged:
        write_stage(staged, job.made_from)
        results = write_results(
            staged,
            metrics=metrics,
            seeds={"seed": arguments.seed},
            arguments=asdict(arguments) | job.masks,
            wall_seconds=time.perf_counter() - started,
            processes=state.num_processes,
            probe=_description(arguments),
            checkpoint=record,
            dataset={
                "name": arguments.dataset_name or arguments.tokens or "tokens of the pretraining",
                "num_classes": len(job.names),
                "num_images": {split: len(job.labels[split]) for split in SPLITS},
                "source": tokens_info(job.tokens)["source"],
            },
        )
        save_layer_curve(results, staged / "layers.png")
    if job.training_folder.is_dir():
        remove_folder(job.training_folder)


def _description(arguments: ProbeArguments) -> dict[str, Any]:
    return {
        "solver": arguments.solver,
        "pooling": "attention" if arguments.solver == "attentive" else "mean",
        "norm": arguments.norm,
        "standardize": arguments.standardize,
        "concatenate": arguments.concatenate,
        "fitted_on": "train and validation" if arguments.solver == "lbfgs" and arguments.refit else "train",
        "chosen_on": "validation",
        "reported_on": "test",
    }


if __name__ == "__main__":
    main()
