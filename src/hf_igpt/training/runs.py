"""A training from its start to its results, the same for every model: held folder, Trainer, model folder, results."""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hf_igpt.processes import process_state
from hf_igpt.training.run_folder import check_owner, run_folder


if TYPE_CHECKING:
    from hf_igpt.training.trainer import IGPTTrainer

logger = logging.getLogger(__name__)

T = TypeVar("T")

MODEL = "model"
# What to do when memory runs out, in the options of pretrain and finetune.
REMEDY = (
    "Give `--per_device_train_batch_size {smaller}` (the images of a step stay the same) or "
    "`--gradient_checkpointing`; in validation a `--per_device_eval_batch_size` below {in_validation}."
)


def run_training(
    arguments: Any,
    identity: dict[str, Any],
    build: "Callable[[], tuple[IGPTTrainer, T]]",
    measure: "Callable[[IGPTTrainer, T], dict[str, Any]]",
    record: "Callable[[IGPTTrainer, T, dict[str, Any]], dict[str, Any]]",
    remedy: str = REMEDY,
) -> dict[str, Any]:
    """
    Trains in the folder `arguments.output_dir`, from the newest checkpoint, and leaves there the model and
    results.json; or does nothing where that has been done. All processes must call it together.

    Args:
        arguments: of the command, a dataclass with at least the seeds and `output_dir`.
        identity: what decides the numbers; another run's folder is refused.
        build: gives the trainer, with a clock, and the data that the other two take. Called once the folder is held.
        measure: metrics of the trained model beside steps, images, parameters and FLOPs. Called on all processes.
        record: draws, and gives the fields of results.json beside those of every training. It takes the metrics too,
            and is called on the first process.
        remedy: see `train_to_the_end`.

    Returns:
        What results.json holds, on the first process and where the run was finished; nothing elsewhere.

    Raises:
        ValueError: the folder is another run's.
        TrainingStopped: training had to end early; the last good checkpoint is kept.
    """
    state, folder = process_state(), Path(arguments.output_dir)
    if (results := _finished_results(folder, identity)) is None:
        started = time.perf_counter()
        with run_folder(folder, identity) if state.is_main_process else contextlib.nullcontext():
            trainer, data = build()
            resumed_from = train_to_the_end(trainer, remedy)
            trainer.save_model(folder / MODEL)
            metrics = _extent(trainer) | measure(trainer, data)
            session = _trained_model(trainer) | {"resumed_from": resumed_from}
            if state.is_main_process:
                session["wall_seconds"] = time.perf_counter() - started
                results = _write(arguments, trainer, metrics, record(trainer, data, metrics) | session)
    state.wait_for_everyone()
    return _announce(results, state.is_main_process)


def _finished_results(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The results of a run that is finished, None where it isn't. Raises ValueError where it is another run's."""
    from hf_igpt.results import RESULTS, read_results
    from hf_igpt.storage import is_complete

    if not (folder / RESULTS).is_file() or not is_complete(folder / MODEL):
        return None
    check_owner(folder, identity)
    logger.info("%s is finished: nothing to do.", folder)
    return read_results(folder)


def _announce(results: dict[str, Any] | None, is_main_process: bool) -> dict[str, Any]:
    """Prints results from one process; returns them, or nothing on the others."""
    from hf_igpt.results import print_results

    if is_main_process:
        print_results(results)
    return results or {}


def _extent(trainer: "IGPTTrainer") -> dict[str, Any]:
    """How long was trained, and how large a model."""
    images = trainer.state.global_step * trainer.throughput.images_per_step
    return {
        "optimizer_steps": trainer.state.global_step,
        "images_seen": images,
        "parameters": trainer.model.num_parameters(),
        "training_flops": images * trainer.throughput.flops_per_image,
    }


def _trained_model(trainer: "IGPTTrainer") -> dict[str, Any]:
    """
    What results say of the model that a run leaves: a digest of its weights (None where DeepSpeed's ZeRO-3 has taken
    them apart), and the tags its trackers gave it. All processes must call it together.
    """
    from hf_igpt.weights import weights_digest

    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    is_whole = not any(hasattr(weight, "ds_id") for weight in model.parameters())
    return {"model_sha256": weights_digest(model) if is_whole else None, "model_tags": list(model.model_tags or [])}


def _write(arguments: Any, trainer: "IGPTTrainer", metrics: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    from hf_igpt.results import write_results
    from hf_igpt.training.throughput import training_seconds

    common = {
        "seeds": {"seed": arguments.seed, "split_seed": arguments.split_seed},
        "arguments": asdict(arguments),
        # `wall_seconds` are those of this session, `training_seconds` count sessions before an interruption too.
        "training_seconds": training_seconds(trainer.state.log_history, trainer.throughput.images_per_step),
        "processes": trainer.args.world_size,
        "log_history": trainer.state.log_history,
    }
    return write_results(arguments.output_dir, metrics=metrics, **common | fields)


def last_train_loss(trainer: "IGPTTrainer") -> float | None:
    """The loss of the last steps that were logged, None where none were."""
    return next((entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry), None)


def train_to_the_end(trainer: "IGPTTrainer", remedy: str = REMEDY) -> str | None:
    """
    Trains from the newest checkpoint and returns its name, or None where there was none.

    Args:
        remedy: what to do when memory runs out, where {smaller} stands for half the images that a device trains on at
            once, and {in_validation} for those of validation.

    Raises:
        TrainingStopped: training had to end early; for want of memory it names the option to lower.
    """
    from hf_igpt.training.errors import TrainingStopped, is_out_of_memory

    checkpoint = trainer.newest_checkpoint()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        now, in_validation = trainer.args.per_device_train_batch_size, trainer.args.per_device_eval_batch_size
        advice = remedy.format(smaller=max(1, now // 2), in_validation=in_validation)
        raise TrainingStopped(f"Out of memory with {now} images at once on a device. {advice} {error}") from error
    return checkpoint and checkpoint.name
