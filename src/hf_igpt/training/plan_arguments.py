"""The options of plan: those of pretraining, and where it would run."""

from dataclasses import dataclass

from hf_igpt.arguments import option
from hf_igpt.training.arguments import MUON, PretrainArguments
from hf_igpt.training.devices import DEVICES


@dataclass(kw_only=True)
class PlanArguments(PretrainArguments):
    """Options of plan beside those of the run that is planned."""

    device: list[str] = option(
        ["cpu"],
        "what to plan for, one or several: cpu is this machine, whose peak is measured; h100 and h200 have the "
        "figures of their data sheets",
        choices=DEVICES,
    )
    devices: int = option(1, "devices of that kind that train together", low=1)
    sharding: str = option(
        "none",
        "how several devices hold the training state: none, a copy on each (DDP); full, a part on each (FSDP)",
        choices=("none", "full"),
    )
    num_images: int | None = option(
        None, "images to train on, where the data set isn't one whose size is known; nothing is downloaded", low=1
    )
    measured_flops: float | str | None = option(
        None,
        "measured rate of one device instead of the peak above: matrix products in FLOP/s, or a JSON file that has "
        "one, a benchmark's or a finished pretrain run's",
        above=0,
    )
    utilization: float | None = option(
        None, "share of the peak that training reaches; by default predicted from the width", above=0, high=1
    )
    plan_dir: str | None = option(
        None, "folder for the plan's results.json; by default outputs/plan/NAME, NAME being the recipe's"
    )

    def check(self) -> None:
        """
        Raises:
            ValueError: as for pretraining; for Muon with a part of the state on each device; for a measured rate that
                several kinds of device would share.
        """
        super().check()
        if self.optimizer == MUON and self.sharding == "full":
            raise ValueError(
                "`optimizer: muon` needs every matrix whole: give `sharding: none`, got full, or `optimizer: adamw`."
            )
        if self.measured_flops is not None and len(self.device) > 1:
            raise ValueError(f"`measured_flops` is of one device: give one `device`, got {', '.join(self.device)}.")
