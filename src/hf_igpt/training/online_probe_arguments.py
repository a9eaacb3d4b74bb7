"""The options of probes that are trained while the backbone runs."""

from dataclasses import dataclass
from operator import not_

from hf_igpt.arguments import option


ONLINE_SOLVERS = ("sgd", "attentive")
# The paper tried 30, 10, 3 and so on downwards (section 3.4); standardised features want lower ones than its own.
RATES = {"sgd": (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01), "attentive": (3e-2, 1e-2, 3e-3, 1e-3)}

EPOCHS = 20.0

_is_online = ("solver", ONLINE_SOLVERS.__contains__)


@dataclass(kw_only=True)
class OnlineProbeOptions:
    """How to train the probes of the solvers sgd and attentive."""

    learning_rates: list[float] | None = option(
        None,
        "peak rates before a cosine to zero, each with probes of its own, one chosen on validation; by default 30 to "
        "0.01 for sgd (momentum 0.9) and 0.03 to 0.001 for attentive (AdamW)",
        above=0,
        only_if=_is_online,
    )
    num_train_epochs: float | None = option(
        None, "passes over the training images; by default 20", above=0, only_if=("max_steps", not_)
    )
    max_steps: int | None = option(
        None, "optimizer steps, instead of num_train_epochs; 1,000,000 in the paper", low=1, only_if=_is_online
    )
    total_batch_size: int = option(128, "images per optimizer step over all devices", low=1, only_if=_is_online)
    per_device_train_batch_size: int | None = option(
        None, "images at once on one device; by default a whole step's share", low=1, only_if=_is_online
    )
    weight_decay: float = option(0.0, "of SGD's penalty, or AdamW's decoupled decay", low=0, only_if=_is_online)
    augmentation: str = option(
        "none",
        "drawn anew for every image and epoch: reflection-padded crops and flips of the tokens",
        choices=("none", "flip", "crop", "crop_flip"),
        only_if=_is_online,
    )
    augmentation_padding: int = option(
        4,
        "reflection padding of the crops in pixels",
        low=1,
        only_if=("augmentation", ("crop", "crop_flip").__contains__),
    )
    pooling_heads: int | None = option(
        None,
        "heads of the attentive pooling; by default as many as the checkpoint has",
        low=1,
        only_if=("solver", "attentive".__eq__),
    )
    save_steps: int = option(1000, "optimizer steps between checkpoints of the probes", low=1, only_if=_is_online)
    dataloader_num_workers: int = option(0, "processes that make batches, on each device", low=0, only_if=_is_online)

    def rates(self, solver: str) -> tuple[float, ...]:
        """Those asked for, or the solver's own."""
        return tuple(self.learning_rates or RATES[solver])
