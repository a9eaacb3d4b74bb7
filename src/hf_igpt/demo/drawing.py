"""Drawing images while somebody watches: parts of them as they come, and a stop that stops."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hf_igpt.demo.checkpoints import Checkpoint
from hf_igpt.demo.inputs import Settings
from hf_igpt.plots import hide_region


@dataclass(frozen=True)
class Progress:
    """
    How far the images are.

    Args:
        tokens: int64 of shape (images, tokens); those still hidden mean nothing.
        hidden: bool of the same shape.
        share: of what is to be drawn, how much is there, from 0 to 1.
    """

    tokens: np.ndarray
    hidden: np.ndarray
    share: float

    def pictures(self, checkpoint: Checkpoint) -> list[Image.Image]:
        """The images in their own size, grey where nothing is drawn yet."""
        channels = checkpoint.model.config.num_channels
        hidden = self.hidden.reshape(len(self.hidden), *checkpoint.grid, channels).any(axis=-1)
        images = checkpoint.processor.decode(self.tokens)
        return [hide_region(image, region) for image, region in zip(images, hidden, strict=True)]


def draw(
    checkpoint: Checkpoint,
    image: Image.Image | None,
    region: np.ndarray | None,
    settings: Settings,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Progress]:
    """
    Draws images row by row, or step by step with a masked model. The model runs when the next part is asked for, one
    user's part at a time, and no more once `should_stop` says so.

    With the same settings the images are those of `hf-igpt sample` where no image is given, and those of the
    image-completion pipeline where one is.

    Args:
        image: what is kept of it stays; None draws whole images.
        region: what is drawn of it, bool of shape (height, width); not looked at without an image.

    Yields:
        The start, then every part that comes.
    """
    import torch

    from hf_igpt.completion_igpt import image_seeds, stream_hidden
    from hf_igpt.regions_igpt import token_mask

    config, numbers = checkpoint.model.config, range(settings.num_images)
    if image is None:
        given, region = np.zeros(config.n_positions, dtype=np.int64), np.ones(checkpoint.grid, dtype=bool)
        seeds = image_seeds(settings.seed, numbers, [0] * len(numbers))
    else:
        given = checkpoint.processor([image]).input_ids[0]
        seeds = image_seeds(settings.seed, [0] * len(numbers), numbers)
    tokens = torch.from_numpy(np.tile(given, (len(numbers), 1)))
    hidden = torch.from_numpy(token_mask(region, config, len(numbers)).copy())
    stream = stream_hidden(checkpoint.model, tokens, hidden, seeds, **settings.generation(checkpoint))
    total = int(hidden.sum())
    while not should_stop():
        with checkpoint.lock:
            part = next(stream, None)
        if part is None:
            return
        tokens, left = (values.cpu().numpy() for values in part)
        yield Progress(tokens, left, 1 - int(left.sum()) / max(total, 1))
