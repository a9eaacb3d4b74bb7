"""The Trainer of a VQ-VAE: its codebook learns after every step, and validation says how good its images are."""

import logging
from typing import Any

from transformers import TrainerCallback

from hf_igpt.data.pixels import PixelDataset
from hf_igpt.evaluation.reconstruction import reconstruction_metrics
from hf_igpt.training.trainer import IGPTTrainer


logger = logging.getLogger(__name__)

# Below this share of the codes in use a codebook has collapsed.
COLLAPSED = 0.1
REMEDY = (
    "Most codes are never chosen, so that tokens say less than they could. Raise `--revival_threshold` or lower "
    "`--ema_decay`, by which unused codes are replaced sooner; lower `--learning_rate`; or, where the images are that "
    "simple, take a smaller `--codebook_size`."
)


class VQVAETrainer(IGPTTrainer):
    """Takes what IGPTTrainer takes, with a `PixelDataset` to evaluate on."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(_UpdateCodebook(self))

    def _check_fsdp(self) -> None:
        # The model is small, and its codebook belongs to no shard.
        raise ValueError("A VQ-VAE is not sharded: leave `--config_file` out, or take `ddp`.")

    def score(self, images: PixelDataset) -> dict[str, int | float | None]:
        """What `reconstruction_metrics` measures, at the precision that the saved model has."""
        return reconstruction_metrics(self._bare_model(), images, self.args.per_device_eval_batch_size)

    def evaluate(
        self,
        eval_dataset: PixelDataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss, PSNR, SSIM and the use of the codes, over every image once, whatever the batches and processes."""
        with self._outside_throughput():
            found = self.score(self.eval_dataset if eval_dataset is None else eval_dataset)
        if self.is_world_process_zero():
            warn_of_collapse(found)
        names = ("loss", "psnr_db", "ssim", "codes_used", "perplexity")
        metrics = {f"{metric_key_prefix}_{name}": found[name] for name in names if found[name] is not None}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _UpdateCodebook(TrainerCallback):
    def __init__(self, trainer: VQVAETrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        # Before Trainer evaluates and saves what the step made.
        self.trainer._bare_model().update_codebook()


def warn_of_collapse(found: dict[str, Any]) -> None:
    """Warns where hardly any code is used, and says what to do."""
    used, possible = found["codes_used"], found["possible_codes"]
    if used < COLLAPSED * possible:
        logger.warning("The codebook has collapsed: %d of %d codes are used. %s", used, possible, REMEDY)
