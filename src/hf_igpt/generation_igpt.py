"""
Iterative decoding of masked models: hidden pixels are revealed over several passes of the model, in any order.

After Chang et al. 2022, "MaskGIT: Masked Generative Image Transformer" (arXiv:2202.04200). Revealed one at a time in
random order, images are exact draws from the mixture of the model's orders, as in Uria et al. 2014, "A Deep and
Tractable Density Estimator" (arXiv:1310.1757).

Shapes: B images, T tokens in raster order, V token values.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from .checks_igpt import check_mask, check_tokens


ORDERS = ("random", "confidence")
SCHEDULES = ("cosine", "linear")
# Of the authors' code (google-research/maskgit).
CHOICE_TEMPERATURE = 4.5
NOT_FINITE = "The model's logits are not finite, so nothing can be drawn from them: its weights are damaged."

# One for all images, or one for each: what is drawn for an image is then the same whatever is drawn beside it.
Generators = torch.Generator | Sequence[torch.Generator] | None


@torch.no_grad()
def iterative_decode(
    model: nn.Module,
    input_ids: torch.LongTensor,
    bool_masked_pos: torch.BoolTensor,
    num_steps: int | None = None,
    order: str = "random",
    schedule: str = "cosine",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    choice_temperature: float | None = None,
    generator: Generators = None,
) -> torch.LongTensor:
    """
    Draws the hidden pixels of images, all tokens of a pixel (or cell) together. Every step runs the model once, draws
    a value for every pixel that is still hidden, and reveals some of them for good, at least one. Dropout is the
    caller's affair: call `model.eval()` first.

    Args:
        model: a masked model: `model(input_ids=..., bool_masked_pos=...).logits` has shape (B, T, V).
        input_ids: tokens of shape (B, T). What stands under the mask is not read.
        bool_masked_pos: True where a pixel is to be drawn, of shape (B, T); any number of them in each image.
        num_steps: passes of the model, fewer where fewer pixels are hidden. By default one for every hidden pixel:
            with "random" order the images are then exact draws from the model. With fewer steps several pixels are
            drawn at once, each as if the others were not there.
        order: "random" reveals pixels in uniformly random order; "confidence" those whose drawn value is the most
            probable, so that images are likelier and less varied than the model's.
        schedule: share of the pixels still hidden after a share t of the steps: "cosine" is cos(pi t / 2), revealing
            few at first and many at the end, "linear" is 1 - t. With one pixel a step it makes no difference.
        temperature: logits are divided by it.
        top_k: draw from the k likeliest values only; 0 draws from all.
        top_p: draw from the likeliest values that make up this probability.
        choice_temperature: with "confidence", scale of the Gumbel noise that is added to log-probabilities, falling to
            0 over the steps; by default 4.5. 0 reveals strictly the most probable.
        generator: on the model's device, one for all images or one for each; by default torch's global one. With one
            for each, an image comes out the same, up to rounding, whatever else is in the batch.

    Returns:
        Tokens of shape (B, T), the given ones unchanged.

    Raises:
        ValueError: an option out of range or without effect, a mask of another shape or type, tokens outside [0, V),
            generators for another number of images, a next-pixel model, or logits that are not finite.
    """
    sampling = (num_steps, order, schedule, temperature, top_k, top_p, choice_temperature, generator)
    for tokens, _ in iterative_steps(model, input_ids, bool_masked_pos, *sampling):  # noqa: B007
        pass
    return tokens


@torch.no_grad()
def iterative_steps(
    model: nn.Module,
    input_ids: torch.LongTensor,
    bool_masked_pos: torch.BoolTensor,
    num_steps: int | None = None,
    order: str = "random",
    schedule: str = "cosine",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    choice_temperature: float | None = None,
    generator: Generators = None,
) -> Iterator[tuple[torch.LongTensor, torch.BoolTensor]]:
    """
    `iterative_decode` step by step: the model runs when the next step is asked for, and no more once nobody asks.

    Yields:
        Tokens and what is hidden of them (a token there means nothing), both of shape (B, T): as they are given, then
        after every step. They are not changed later.
    """
    check_options(num_steps, order, schedule, temperature, top_k, top_p, choice_temperature)
    check_generators(generator, len(input_ids))
    check_mask(bool_masked_pos, input_ids.shape, model.config)
    hidden = bool_masked_pos.to(input_ids.device)
    tokens = input_ids.masked_fill(hidden, 0)
    check_tokens("input_ids", tokens, model.config)
    tokens = tokens.long()

    channels = model.config.num_channels
    if tokens.shape[1] % channels:
        raise ValueError(f"`input_ids` must be whole cells of {channels} tokens, got {tokens.shape[1]} tokens.")
    numbers = _revealed(_cells(hidden, channels).sum(dim=1).cpu(), num_steps, schedule).to(tokens.device)
    steps = (numbers > 0).sum(dim=0).clamp(min=1)
    noise_scale = CHOICE_TEMPERATURE if choice_temperature is None else choice_temperature
    warpers = _warpers(temperature, top_k, top_p)
    # A permutation of the cells, whatever the values: which pixels come first.
    keys = tokens.new_empty(len(tokens), tokens.shape[1] // channels)
    keys = fill_randomly(keys, lambda row, source: row.random_(2**62, generator=source), generator)
    priority = keys.argsort(dim=1).float()
    yield tokens, hidden
    for step, number in enumerate(numbers):
        logits = model(input_ids=tokens, bool_masked_pos=hidden, return_dict=True).logits
        drawn, log_probability = _draw(logits, warpers, generator)
        if order == "confidence":
            scale = noise_scale * (1 - (step + 1) / steps).clamp(min=0)
            # Of a cell what is drawn of it: the product over its hidden tokens.
            priority = log_probability.masked_fill(~hidden, 0).unflatten(1, (-1, channels)).sum(dim=2)
            priority = priority + scale.unsqueeze(1) * _gumbel(priority, generator)
        left = _cells(hidden, channels)
        rank = priority.masked_fill(~left, -math.inf).argsort(dim=1, descending=True).argsort(dim=1)
        chosen = (rank < number.unsqueeze(1)).repeat_interleave(channels, dim=1) & hidden
        tokens = torch.where(chosen, drawn, tokens)
        hidden = hidden & ~chosen
        yield tokens, hidden


def _cells(hidden: torch.BoolTensor, channels: int) -> torch.BoolTensor:
    """Which cells have a hidden token, of shape (B, cells)."""
    return hidden.unflatten(1, (-1, channels)).any(dim=2)


def _revealed(num_hidden: torch.LongTensor, num_steps: int | None, schedule: str) -> torch.LongTensor:
    """
    How many pixels each step reveals in each image, of shape (steps, B): at least one until none is hidden.

    Args:
        num_hidden: hidden pixels of each image, of shape (B,).
    """
    longest = int(num_hidden.max())
    num_steps = longest if num_steps is None else min(num_steps, longest)
    steps = num_hidden.clamp(min=1, max=max(num_steps, 1))
    step = torch.minimum(torch.arange(num_steps + 1).unsqueeze(1), steps)
    if schedule == "cosine":
        left = (num_hidden * torch.cos(math.pi / 2 * step.double() / steps)).floor().long()
    else:
        left = num_hidden * (steps - step) // steps
    # Both schedules are concave, so that this bound alone makes every step reveal a pixel.
    left = torch.minimum(left, num_hidden - step).clamp(min=0)
    return left[:-1] - left[1:]


def _draw(
    logits: torch.Tensor, warpers: LogitsProcessorList, generator: Generators
) -> tuple[torch.LongTensor, torch.Tensor]:
    """A value for every position, and its log-probability before truncation and temperature; both of shape (B, T)."""
    logits = logits.to(torch.promote_types(torch.float32, logits.dtype))
    drawn = draw_values(warpers(None, logits.flatten(0, 1)).view_as(logits), generator)
    # After top_k=1 every value would be certain, and confidence no order.
    log_probability = logits.log_softmax(dim=-1).gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
    if not bool(log_probability.isfinite().all()):
        raise ValueError(NOT_FINITE)
    return drawn, log_probability


def draw_values(logits: torch.Tensor, generator: Generators) -> torch.LongTensor:
    """Draws from the distributions in the last axis of logits (B, ..., V), as `torch.multinomial` does it."""
    return pick_values(logits, _exponential(logits, generator))


def pick_values(logits: torch.Tensor, exponentials: torch.Tensor) -> torch.LongTensor:
    """
    What is drawn with the given noise, exponentially distributed as many numbers as logits: the largest sum of logit
    and Gumbel noise, for that is -log of these.
    """
    return logits.softmax(dim=-1).div_(exponentials).argmax(dim=-1)


def _gumbel(like: torch.Tensor, generator: Generators) -> torch.Tensor:
    return -_exponential(like, generator).log()


def _exponential(like: torch.Tensor, generator: Generators) -> torch.Tensor:
    return fill_exponentially(torch.empty_like(like), generator)


def fill_exponentially(tensor: torch.Tensor, generator: Generators) -> torch.Tensor:
    """Fills a tensor (B, ...) in place with what `draw_values` draws its values by."""
    return fill_randomly(tensor, lambda row, source: row.exponential_(generator=source), generator)


def fill_randomly(
    tensor: torch.Tensor, fill: Callable[[torch.Tensor, torch.Generator | None], object], generator: Generators
) -> torch.Tensor:
    """Fills a tensor (B, ...) in place, from one generator at once or each image from its own."""
    if generator is None or isinstance(generator, torch.Generator):
        fill(tensor, generator)
    else:
        for row, source in zip(tensor, generator, strict=True):
            fill(row, source)
    return tensor


def check_generators(generator: Generators, num_images: int) -> None:
    """
    Raises:
        ValueError: generators for another number of images.
    """
    if generator is None or isinstance(generator, torch.Generator) or len(generator) == num_images:
        return
    raise ValueError(
        f"`generator` must be one generator, or one for each of the {num_images} images to be drawn, got "
        f"{len(generator)}."
    )


def _warpers(temperature: float, top_k: int, top_p: float) -> LogitsProcessorList:
    warpers = LogitsProcessorList()
    if temperature != 1:
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k > 0:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers


def check_options(
    num_steps: int | None = None,
    order: str = "random",
    schedule: str = "cosine",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    choice_temperature: float | None = None,
) -> None:
    """
    Raises:
        ValueError: an option of `iterative_decode` out of range or without effect.
    """
    requirements = (
        (
            "num_steps",
            num_steps,
            num_steps is None or is_whole(num_steps, 1),
            "None or a whole number of at least 1",
        ),
        ("order", order, order in ORDERS, f"one of {', '.join(ORDERS)}"),
        ("schedule", schedule, schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
        (
            "temperature",
            temperature,
            _is_number(temperature) and 0 < temperature < math.inf,
            "above 0 and finite; for the likeliest use top_k=1",
        ),
        ("top_k", top_k, is_whole(top_k, low=0), "a whole number of at least 0, where 0 draws from all values"),
        ("top_p", top_p, _is_number(top_p) and 0 < top_p <= 1, "above 0 and at most 1"),
    )
    for name, value, is_met, requirement in requirements:
        if not is_met:
            raise ValueError(f"`{name}` must be {requirement}, got {value!r}.")
    if choice_temperature is None:
        return
    if order != "confidence":
        raise ValueError(
            f'`choice_temperature` has no effect with order="{order}": leave it out, or give order="confidence".'
        )
    if not _is_number(choice_temperature) or not 0 <= choice_temperature < math.inf:
        raise ValueError(f"`choice_temperature` must be at least 0 and finite, got {choice_temperature!r}.")


def is_whole(value: object, low: int) -> bool:
    """Whether a value is an integer, no bool, of at least `low`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


__all__ = ["Generators", "check_generators", "check_options", "draw_values", "iterative_decode", "iterative_steps"]
