"""transformers' Trainer with checkpoints that are whole or absent, and an end to training on the first bad number.

What differs from Trainer, and why:

- A checkpoint is written into a hidden folder by all processes, sealed with a manifest and renamed by one (Trainer
  writes in place and resumes from the highest-numbered folder, finished or not).
- Resuming takes the newest checkpoint whose manifest holds and which has optimizer, scheduler and random states
  (Trainer goes on with fresh ones where a file is missing).
- Rotation removes committed checkpoints of this run by step, once the new one is there, never the newest or the best.
- A loss, gradient or weight that isn't finite stops every process before it is applied, logged or saved (Trainer logs
  0.0 and goes on). `logging_nan_inf_filter` is therefore always off.
- SIGTERM and Ctrl-C let the step finish, save it and end with `TrainingInterrupted` (Trainer dies at once).
- A process that ends or hangs ends the others within `ddp_timeout` (on a CPU, Trainer waits for half an hour).
- The output folder is locked while a run trains in it.
- The training arguments are saved as JSON without secrets (Trainer pickles them with the Hub token in clear).
- Under FSDP a checkpoint has the files of an unsharded run (see `sharding`), so that either continues the other.

It relies on these methods of Trainer beside the public ones, the same in transformers 5.18 to 5.24: `_save_checkpoint`
(builds its paths from `_get_output_dir`), `_save`, `_get_grad_norm` (called once before each optimizer step),
`_load_best_model`, `_run_epoch`, `_finalize_training` and `_get_train_sampler`; under FSDP also on
`_save_optimizer_and_scheduler`, `_load_from_checkpoint` and `_load_optimizer_and_scheduler`.
"""

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from hf_igpt.modeling_igpt import ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling
from hf_igpt.processes import on_first_process
from hf_igpt.storage import (
    MANIFEST,
    DamagedFolderError,
    check_writable,
    clean_leftovers,
    folder_lock,
    list_checkpoints,
    newest_complete_checkpoint,
    read_json,
    remove_folder,
    staged_folder,
    verify_folder,
    write_json,
)
from hf_igpt.training import sharding
from hf_igpt.training.errors import TrainingInterrupted, TrainingStopped
from hf_igpt.training.interruption import StopAfterStep, StopSignals
from hf_igpt.training.peers import lost_processes_end_this_one
from hf_igpt.training.throughput import Throughput


logger = logging.getLogger(__name__)

TRAINING_ARGUMENTS = "training_args.json"
# DeepSpeed's names for the optimizer end in optim_states.pt.
NEEDED_TO_RESUME = (TRAINER_STATE_NAME, "*model*", "*optim*", "scheduler.pt", "rng_state*.pth")


class NonFiniteTrainingError(TrainingStopped):
    """A loss, gradient or weight is NaN or infinite. Nothing of that step was applied, logged or saved."""


class _EpochOfSampler(TrainerCallback):
    """Tells the sampler its epoch: accelerate doesn't reach it in a resumed epoch with several processes."""

    def __init__(self, sampler: Sampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(state.global_step // self.sampler.steps_per_epoch)


class IGPTTrainer(Trainer):
    """Trainer that loses nothing to a kill and never trains on after a number that isn't finite.

    Takes what Trainer takes, and `throughput`, a clock whose figures go into the log. Weight decay spares norms,
    embeddings and biases. Under fp16 a gradient that overflows is left to the gradient scaler, which skips that
    step; the loss is checked all the same.

    Raises:
        ValueError: If `push_to_hub` is set: uploads would copy a checkpoint while it is being renamed. Or for settings
            of FSDP that `sharding.check_fsdp` refuses.
    """

    _staging_folder: Path | None = None
    _loss_of_step: torch.Tensor | float = 0.0
    _signals = StopSignals()

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        *,
        throughput: Throughput | None = None,
        **kwargs: Any,
    ):
        if args is not None and args.push_to_hub:
            raise ValueError(
                "`push_to_hub` must be off: publish the finished checkpoint afterwards with `hf-igpt push_to_hub`."
            )
        use_cache = getattr(getattr(model, "config", None), "use_cache", None)
        super().__init__(model, args, **kwargs)
        if use_cache is not None:
            # Trainer turns it off, and checkpoints would be saved so; our models make no cache in training anyway.
            self.model.config.use_cache = use_cache
        self.args.logging_nan_inf_filter = False
        self.throughput = throughput
        self._stop = StopAfterStep()
        self.add_callback(self._stop)
        if self.is_fsdp_enabled:
            self._check_fsdp()
        else:
            sharding.refuse_to_ignore_fsdp()
        heads = (ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling)
        # Compiled under DDP, the graph is cut where gradients are sent, which older torch can't do around blocks that
        # are computed again.
        is_cut = self.args.torch_compile and self.args.world_size > 1
        self._heads_skip_logits = isinstance(self.model, heads) and not is_cut
        if self.args.torch_compile:
            self._compile_once()

    def _compile_once(self) -> None:
        plugin = self.accelerator.state.dynamo_plugin
        # `EpochSampler` deals batches of one shape.
        plugin.dynamic = False
        # One graph, or an error that says where it breaks. DDP's own code breaks it, to send gradients meanwhile.
        plugin.fullgraph = self.args.world_size == 1 and getattr(self.model, "_can_compile_fullgraph", False)

    # Start and resume

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains, from a checkpoint if one is given.

        `resume_from_checkpoint=True` takes the newest complete one, a path takes that one after checking it. Raises
        ValueError if the checkpoint is damaged, if none is complete, if the output folder can't be written to or is in
        use, or if it holds checkpoints and none is to be resumed from; `TrainingInterrupted` after SIGTERM or Ctrl-C,
        `LostProcessError` if another process ended or didn't answer within `ddp_timeout`.
        """
        self._stop.agreed, self._signals = 0, StopSignals()
        with contextlib.ExitStack() as stack:
            stack.enter_context(lost_processes_end_this_one(self.args.ddp_timeout))
            on_first_process(lambda: self._prepare_output_folder(stack))
            stack.enter_context(self._signals)
            try:
                output = self._train(resume_from_checkpoint, *args, **kwargs)
            except RuntimeError as error:
                # A signal to all processes of a group ends the loader's workers too, and with them the step.
                if self._signals.received and not isinstance(error, TrainingStopped):
                    raise TrainingInterrupted(self._signals.received, "the last checkpoint is kept") from error
                raise
            self._end_if_interrupted()
        return output

    def _end_if_interrupted(self) -> None:
        received = max(row[0] for row in self._gather([float(self._signals.received)]))
        if number := self._stop.agreed or int(received):
            saved = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            kept = f"step {self.state.global_step} is saved" if saved.is_dir() else "its last step is not saved"
            raise TrainingInterrupted(number, kept)

    def _train(self, resume_from_checkpoint: str | Path | bool | None, *args: Any, **kwargs: Any) -> TrainOutput:
        self._loss_of_step = 0.0
        # An evaluation before training would leave the bare model here, and Trainer would train it without exchange.
        self.model_wrapped = self.model
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.newest_checkpoint()
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no checkpoint in {self.args.output_dir} to resume from.")
        elif resume_from_checkpoint:
            checkpoint = Path(resume_from_checkpoint)
            on_first_process(lambda: verify_folder(checkpoint, needed=NEEDED_TO_RESUME))
        else:
            on_first_process(self._refuse_old_checkpoints)
        if resume_from_checkpoint:
            self._compare_steps(Path(resume_from_checkpoint))
        return super().train(str(resume_from_checkpoint) if resume_from_checkpoint else None, *args, **kwargs)

    def _check_fsdp(self) -> None:
        config = getattr(self.model, "config", None)
        if config is None:
            raise ValueError("FSDP shards models, not probes of them: leave `--config_file` out, or take `ddp`.")
        dropout = max(getattr(config, name, 0) for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop"))
        sharding.check_fsdp(self.accelerator.state.fsdp_plugin, dropout, bool(self.args.gradient_checkpointing))

    def newest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint in the output folder, the same on every process; None if there is none.

        Raises `DamagedFolderError` if there are checkpoints and none can be resumed from.
        """
        return on_first_process(lambda: newest_complete_checkpoint(self.args.output_dir, NEEDED_TO_RESUME))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer takes one step too many when it resumes a finished run in the middle of an epoch.
        if self.throughput is not None and not self.throughput.is_running:
            self.throughput.start(self.state.global_step)
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _prepare_output_folder(self, stack: contextlib.ExitStack) -> None:
        check_writable(self.args.output_dir)
        stack.enter_context(folder_lock(self.args.output_dir, type(self).__name__, is_nested=True))
        clean_leftovers(self.args.output_dir)

    def _refuse_old_checkpoints(self) -> None:
        if checkpoints := list_checkpoints(self.args.output_dir):
            raise ValueError(
                f"{self.args.output_dir} holds {checkpoints[-1][1].name} of an earlier run. Resume from it, or choose "
                "another output folder."
            )

    def _compare_steps(self, checkpoint: Path) -> None:
        """Raises ValueError where a step would have other images than it had before the checkpoint."""
        if not (checkpoint / TRAINING_ARGUMENTS).is_file():
            return  # Trainer saves in its own way on a TPU.
        saved = read_json(checkpoint / TRAINING_ARGUMENTS)
        processes = len(list(checkpoint.glob("rng_state*.pth")))
        before = _images_of_step(processes, saved["per_device_train_batch_size"], saved["gradient_accumulation_steps"])
        now = _images_of_step(
            self.args.world_size, self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        )
        if before[0] != now[0]:
            raise ValueError(
                f"{checkpoint} comes from steps of {before[1]}, and this run has {now[1]}. Change "
                "`per_device_train_batch_size` or `gradient_accumulation_steps` so that they agree."
            )
        if processes != self.args.world_size and self.is_world_process_zero():
            logger.warning(
                "%s was saved by %d processes and this run has %d: dropout won't draw what it would have drawn.",
                checkpoint,
                processes,
                self.args.world_size,
            )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        from hf_igpt.data.loading import EpochSampler, KeyedDataset

        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, KeyedDataset):
            return super()._get_train_sampler(dataset)
        per_step = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        sampler = EpochSampler(len(dataset), per_step, seed=seed)
        self.remove_callback(_EpochOfSampler)
        self.add_callback(_EpochOfSampler(sampler))
        return sampler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices that are multiplied with; transformers would decay our norms and the embeddings too."""
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        return [f"{name}.weight" for name in linear]

    # The loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """As in Trainer; where nobody reads the logits, they are never held all at once."""
        nobody_reads = not return_outputs or self.args.prediction_loss_only
        is_models_own = self.compute_loss_func is None and self.label_smoother is None
        if self._heads_skip_logits and nobody_reads and is_models_own:
            inputs = {**inputs, "skip_logits": True}
        return super().compute_loss(model, inputs, return_outputs, **kwargs)

    # The log

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.throughput is not None and "loss" in logs:
            logs = {**logs, **self.throughput.since_last_log(self.state.global_step)}
        super().log(logs, *args, **kwargs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As in Trainer. With several processes, the loss of stored tokens counts every image once (see below)."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        with self._outside_throughput():
            if self.args.world_size > 1 and self._pretrains_on(dataset):
                return self._evaluate_in_shares(dataset, metric_key_prefix)
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def _pretrains_on(self, dataset: Any) -> bool:
        from hf_igpt.data.loading import MaskedTokenCollator, TokenCollator, TokenDataset

        model = self._bare_model()
        pairs = (
            (ImageGPTForCausalImageModeling, TokenCollator),
            (ImageGPTForMaskedImageModeling, MaskedTokenCollator),
        )
        fits = any(isinstance(model, head) and isinstance(self.data_collator, made) for head, made in pairs)
        return isinstance(dataset, TokenDataset) and fits

    def _evaluate_in_shares(self, dataset: Any, prefix: str) -> dict[str, float]:
        # Trainer fills the last batch of the processes with images of the first, and their losses enter the mean.
        from hf_igpt.training.objectives import eval_loss

        model = self._bare_model()
        with self.accelerator.autocast():
            loss = eval_loss(model, dataset.tokens, self.data_collator, self.args.eval_batch_size)
        metrics = {f"{prefix}_loss": loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @contextlib.contextmanager
    def _outside_throughput(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            if self.throughput is not None:
                self.throughput.pause(time.perf_counter() - started)

    # Numbers that aren't finite

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._loss_of_step = self._loss_of_step + loss
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | float | None = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        loss, self._loss_of_step = float(self._loss_of_step), 0.0
        numbers = self._gather([loss, float(grad_norm), float(self._signals.received)])
        losses, norms, signals = zip(*numbers, strict=True)
        self._stop.agreed = int(max(signals))
        if (rank := _first_not_finite(losses)) is None and getattr(self.accelerator, "scaler", None) is None:
            rank = _first_not_finite(norms)
        if rank is not None:
            raise NonFiniteTrainingError(
                f"Step {self.state.global_step + 1} has loss {losses[rank]} and gradient norm {norms[rank]} on "
                f"process {rank}, at learning rate {self.lr_scheduler.get_last_lr()[0]}. It was not applied; the last "
                "checkpoint is kept. Lower the learning rate, clip gradients, or check the data."
            )
        return grad_norm

    def _gather(self, numbers: list[float]) -> list[list[float]]:
        """One row of numbers from each process, on every process, so that all of them stop together."""
        if self.args.world_size == 1:
            return [numbers]
        return self.accelerator.gather(torch.tensor([numbers], device=self.args.device)).tolist()

    def _refuse_non_finite_weights(self) -> None:
        # Buffers too: a VQ-VAE's codes are no parameters.
        weights = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        counts = [(~sharding.local_part(weight.detach()).isfinite()).sum().item() for weight in weights.values()]
        for rank, rank_counts in enumerate(self._gather(counts)):
            for name, count in zip(weights, rank_counts, strict=True):
                if count:
                    raise NonFiniteTrainingError(
                        f"`{name}` has {int(count)} values that aren't finite at step {self.state.global_step} on "
                        f"process {rank}. Nothing was saved; the last checkpoint is kept."
                    )

    # Saving

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging_folder or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._outside_throughput():
            self._commit_checkpoint(model, trial)

    def _commit_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._refuse_non_finite_weights()
        final = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        is_writer = self.args.should_save
        if is_writer and final.is_dir() and not (final / MANIFEST).is_file():
            logger.warning("Replacing %s, which was never finished.", final)
            remove_folder(final)
        barrier = self.accelerator.wait_for_everyone
        with staged_folder(final, is_writer=is_writer, barrier=barrier, overwrite=True) as staged:
            self._staging_folder = staged.parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging_folder = None
            self._name_best_checkpoint(final)
            if is_writer:
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
        if is_writer:
            self._rotate(final)

    def _name_best_checkpoint(self, final: Path) -> None:
        # Trainer saw the hidden folder only, so it named the wrong path or none.
        if self.state.best_global_step:
            best = final.with_name(f"checkpoint-{self.state.best_global_step}")
            if best == final or best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def _rotate(self, newest: Path) -> None:
        limit = self.args.save_total_limit
        if limit is None or limit < 1:
            return
        kept = {newest.name, Path(self.state.best_model_checkpoint or newest).name}
        # A higher step is not of this run's past, and an incomplete folder is no checkpoint: neither is ours to count.
        steps = [(step, path) for step, path in list_checkpoints(newest.parent) if step <= self.state.global_step]
        complete = [path for _, path in steps if _has_its_files(path)]
        surplus = len(complete) - max(limit, len(kept))
        for path in [path for path in complete if path.name not in kept][: max(surplus, 0)]:
            remove_folder(path)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        # Trainer would delete the newest checkpoint here if the limit is 1 and an older one is the best.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _load_best_model(self) -> None:
        verify_folder(self.state.best_model_checkpoint)
        if self.is_fsdp_enabled:
            sharding.load_whole_weights(self._bare_model(), Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _bare_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    # Shards

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        optimizer = sharding.whole_optimizer_state(self.optimizer, keep=self.args.should_save)
        if self.args.should_save:
            torch.save(optimizer, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            sharding.load_whole_weights(self._bare_model(), Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer, scheduler = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True, mmap=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        sharding.load_whole_optimizer_state(self.optimizer, optimizer)
        self.lr_scheduler.load_state_dict(scheduler)

    # The model

    def save_model(self, output_dir: str | Path | None = None, _internal_call: bool = False) -> None:
        """Writes weights, config and processor into a folder of their own, complete or not at all.

        Replaces an older folder of ours. Raises ValueError without a folder, or if it holds anything else, and
        `NonFiniteTrainingError` if a weight isn't finite.
        """
        if _internal_call:
            self._write_model(str(output_dir or self.args.output_dir))
            return
        if output_dir is None:
            raise ValueError("`output_dir` must name a folder for the model alone: the run's own holds checkpoints.")
        self._refuse_non_finite_weights()
        barrier = self.accelerator.wait_for_everyone
        with staged_folder(output_dir, is_writer=self.args.should_save, barrier=barrier, overwrite=True) as staged:
            self._write_model(str(staged))

    def _write_model(self, folder: str) -> None:
        if self.is_fsdp_enabled:
            weights = sharding.whole_weights(self._bare_model(), keep=self.args.should_save)
            with sharding.under_own_class(self._bare_model()):
                self._save(folder, weights)
        else:
            super().save_model(folder, _internal_call=True)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        model = self._bare_model()
        model.save_pretrained(folder, state_dict=state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        write_json(folder / TRAINING_ARGUMENTS, json.loads(self.args.to_json_string()))


def _images_of_step(processes: int, per_device: int, accumulation: int) -> tuple[int, str]:
    """Images of an optimizer step, and how they come about."""
    total = processes * per_device * accumulation
    return total, f"{processes} processes x {per_device} images x {accumulation} accumulated = {total} images"


def _first_not_finite(numbers: Sequence[float]) -> int | None:
    return next((rank for rank, number in enumerate(numbers) if not math.isfinite(number)), None)


def _has_its_files(checkpoint: Path) -> bool:
    try:
        verify_folder(checkpoint, contents=False)
    except DamagedFolderError:
        return False
    return True
