"""Trainer callbacks: pictures of samples while a model trains."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback


if TYPE_CHECKING:
    from PIL import Image

    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.training.throughput import Throughput

logger = logging.getLogger(__name__)

MASKED_STEPS = 32


class SampleGridCallback(TrainerCallback):
    """
    Every N steps draws images from the model into `samples/step-N.png` and sends them to the trackers.

    Args:
        processor: turns tokens into images.
        folder: the run's output folder.
        every_steps: optimizer steps between grids.
        num_images: images of a grid.
        seed: seed of the samples, the same for every grid so that they can be compared.
        reporters: the Trainer's callbacks, among which the trackers are found.
        throughput: a clock to stop meanwhile.
    """

    def __init__(
        self,
        processor: "IGPTImageProcessor",
        folder: Path,
        every_steps: int,
        num_images: int = 16,
        seed: int = 0,
        reporters: Sequence[TrainerCallback] = (),
        throughput: "Throughput | None" = None,
    ):
        self.processor, self.folder = processor, Path(folder)
        self.every_steps, self.num_images, self.seed = every_steps, num_images, seed
        self.reporters, self.throughput = reporters, throughput

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """
        Draws on the main process; the others wait at the next gradient exchange, or draw the same where each has a
        part of the model only.
        """
        from hf_igpt.processes import is_sharded

        if state.global_step % self.every_steps or not (state.is_world_process_zero or is_sharded(model)):
            return
        from hf_igpt.generation import sample
        from hf_igpt.plots import image_grid, save_png

        started = time.perf_counter()
        model = _unwrapped(model)
        # A masked model's finest picture takes a pass for every pixel, which is too many in the middle of a training.
        steps = {} if model.config.is_causal else {"num_steps": MASKED_STEPS}
        tokens = sample(model, self.num_images, batch_size=self.num_images, seed=self.seed, **steps)
        if state.is_world_process_zero:
            grid = image_grid(self.processor.decode(tokens))
            save_png(grid, self.folder / "samples" / f"step-{state.global_step}.png")
            report_image(self.reporters, "samples", grid, state.global_step)
        if self.throughput is not None:
            self.throughput.pause(time.perf_counter() - started)


def report_image(reporters: Sequence[TrainerCallback], name: str, image: "Image.Image", step: int) -> None:
    """Sends a picture to those of Trainer's trackers that take pictures: TensorBoard, W&B, Trackio."""
    for reporter in reporters:
        kind = type(reporter).__name__
        if kind == "TensorBoardCallback" and reporter.tb_writer is not None:
            reporter.tb_writer.add_image(name, np.asarray(image), step, dataformats="HWC")
        elif kind == "WandbCallback":
            reporter._wandb.log({name: reporter._wandb.Image(image), "train/global_step": step})
        elif kind == "TrackioCallback":
            reporter._trackio.log({name: reporter._trackio.Image(np.asarray(image)), "train/global_step": step})


def _unwrapped(model: Any) -> Any:
    from accelerate.utils import extract_model_from_parallel

    return extract_model_from_parallel(model, keep_torch_compile=False)
