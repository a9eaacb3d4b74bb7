"""
Exact parallel sampling from next-pixel models: pixels ahead are forecast and checked in one pass of the model.

A drawn value is the one with the largest sum of logit and Gumbel noise. Once the noise of every pixel is fixed, an
image is a function of it: a forecast is right or wrong, and from the values of the pixels ahead one pass tells which
of them are what drawing pixel by pixel gives. The longest right prefix is kept, at least one pixel a pass. Nothing is
approximated; what a forecast is worth decides only how many passes an image takes.

After Wiggers and Hoogeboom 2020, "Predictive Sampling with Forecasting Autoregressive Models" (arXiv:2002.09928), and
Song et al. 2020, "Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving" (arXiv:2002.03629).
Drafts from the first layers are as in Zhang et al. 2023, "Draft & Verify" (arXiv:2309.08168).

Shapes: B images, W ids ahead, V token values. Ids count the start token: id i of a sequence is token i - 1.
"""

from collections.abc import Iterator

import torch
from torch import nn
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from .checks_igpt import check_tokens
from .fast_decoding_igpt import SpanDecoder, is_plain_model
from .generation_igpt import (
    NOT_FINITE,
    Generators,
    check_generators,
    fill_exponentially,
    is_whole,
    pick_values,
)
from .rotary_igpt import rotation_of


FORECASTS = ("fixed_point", "above", "shallow_exit")
# They look at the logits of one pixel at a time.
_PROCESSORS = (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
# Masks written out, of which every row has its own; flash attention has none, flex compiles each.
_BACKENDS = ("eager", "sdpa")


@torch.no_grad()
def parallel_decode(
    model: nn.Module,
    input_ids: torch.LongTensor,
    window: int,
    forecast: str | None = None,
    exit_layer: int | None = None,
    *,
    max_length: int | None = None,
    do_sample: bool = True,
    processors: LogitsProcessorList | None = None,
    generator: Generators = None,
) -> torch.LongTensor:
    """
    Draws the rest of images in fewer passes than there are pixels to draw: up to rounding the images that
    `model.generate` draws one pixel after the other from the same generators, or from the same global random state.

    The logits of a pixel are rounded otherwise in a pass over several pixels than in one of its own. Where two values
    come as close to each other as that, and only there, the image may go on with the other one.

    Args:
        model: a next-pixel head in evaluation mode.
        input_ids: ids of shape (B, T) that begin with the start token.
        window: pixels that a pass looks at, W. 1 draws pixel by pixel.
        forecast: what is put in for the pixels ahead. "fixed_point", the default: what the last pass gave for them, a
            step of Jacobi's iteration, and the pixel above where no pass has looked yet. "above": the pixel above.
            "shallow_exit": drawn one after the other, with the same noise, from the
            output of the first layers through the final norm and the head; the pass goes on from there, so that no
            layer runs twice.
        exit_layer: with "shallow_exit", how many layers draw the forecast; by default a quarter of them.
        max_length: ids of the whole sequence, by default those of an image.
        do_sample: False takes the likeliest value of every pixel.
        processors: of logits, such as temperature and truncation. They must look at one pixel at a time.
        generator: one for all images or one for each; by default torch's global one.

    Returns:
        Ids of shape (B, max_length), the given ones unchanged.

    Raises:
        ValueError: an option out of range or without effect, a masked model or one in training mode, ids that are no
            beginning of images, another attention backend than eager and sdpa, generators for another number of
            images, or logits that are not finite.
    """
    options = {"max_length": max_length, "do_sample": do_sample, "processors": processors, "generator": generator}
    for ids, _ in parallel_passes(model, input_ids, window, forecast, exit_layer, **options):  # noqa: B007
        pass
    return ids


@torch.no_grad()
def parallel_passes(
    model: nn.Module,
    input_ids: torch.LongTensor,
    window: int,
    forecast: str | None = None,
    exit_layer: int | None = None,
    *,
    max_length: int | None = None,
    do_sample: bool = True,
    processors: LogitsProcessorList | None = None,
    generator: Generators = None,
) -> Iterator[tuple[torch.LongTensor, torch.LongTensor]]:
    """
    `parallel_decode` pass by pass: the model runs when the next pass is asked for.

    Yields:
        Ids of shape (B, max_length), and how many of each image are known, of shape (B,), after every pass. What
        stands behind the known ids means nothing.
    """
    forecast = FORECASTS[0] if forecast is None else forecast
    max_length = model.config.n_positions + 1 if max_length is None else max_length
    processors = LogitsProcessorList() if processors is None else processors
    check_parallel_options(window, forecast, exit_layer)
    _check_processors(processors)
    _check_model(model, exit_layer)
    check_tokens("input_ids", input_ids, model.config, with_start=True)
    check_generators(generator, len(input_ids))
    if not input_ids.shape[1] < max_length <= model.config.n_positions + 1:
        raise ValueError(
            f"`max_length` must be above the {input_ids.shape[1]} ids that are given and at most "
            f"{model.config.n_positions + 1}, the start token and the tokens of an image, got {max_length}."
        )
    if forecast == "shallow_exit" and exit_layer is None:
        exit_layer = max(1, model.config.num_hidden_layers // 4)
    window = min(window, max_length - input_ids.shape[1])
    noise = _Noise(model, len(input_ids), window, max_length, generator) if do_sample else None
    decoder = _Decoder(model, input_ids.to(model.device), window, max_length, processors, noise)
    while decoder.unfinished:
        if forecast != "shallow_exit":
            decoder.copy_ahead(forecast)
        decoder.check(exit_layer or 0)
        yield decoder.ids[:, :max_length], decoder.known.clone()


def check_parallel_options(window: int, forecast: str | None = None, exit_layer: int | None = None) -> None:
    """
    Raises:
        ValueError: an option of `parallel_decode` out of range or without effect.
    """
    if not is_whole(window, low=1):
        raise ValueError(f"`parallel_window` must be a whole number of at least 1, got {window!r}.")
    if forecast is not None and forecast not in FORECASTS:
        raise ValueError(f"`forecast` must be one of {', '.join(FORECASTS)}, got {forecast!r}.")
    if exit_layer is not None and forecast != "shallow_exit":
        raise ValueError(
            f'`exit_layer` has no effect with forecast="{forecast or FORECASTS[0]}": leave it out, or give '
            'forecast="shallow_exit".'
        )


def _check_processors(processors: LogitsProcessorList) -> None:
    """
    Raises:
        ValueError: a processor that needs to know the pixels before, which are only forecast.
    """
    for processor in processors:
        if not isinstance(processor, _PROCESSORS):
            raise ValueError(
                f"`parallel_window` goes with temperature, truncation and suppressed tokens, got "
                f"{type(processor).__name__}, which may look at the pixels before. Leave one of them out."
            )


def _check_model(model: nn.Module, exit_layer: int | None) -> None:
    config = model.config
    if not config.is_causal:
        raise ValueError(
            "`model` must be a next-pixel model, got one with is_causal=False: masked models draw several pixels a "
            "pass by `num_steps`."
        )
    if model.training:
        raise ValueError(
            "`model` must be in evaluation mode, for with dropout no pass is like another: `model.eval()`."
        )
    if config._attn_implementation not in _BACKENDS:
        raise ValueError(
            f"`attn_implementation` must be one of {', '.join(_BACKENDS)} to draw pixels in parallel, got "
            f"{config._attn_implementation!r}: call `model.set_attn_implementation({_BACKENDS[1]!r})`."
        )
    if exit_layer is not None and not (is_whole(exit_layer, low=1) and exit_layer < config.num_hidden_layers):
        raise ValueError(
            f"`exit_layer` must be from 1 to {config.num_hidden_layers - 1}, one less than the layers of the model, "
            f"got {exit_layer!r}."
        )


class _Decoder:
    """
    A batch of images, each known up to an id of its own.

    Attributes:
        ids: of shape (B, max_length + W): what is known, behind it what is forecast.
        known: how many ids of each image are known, of shape (B,).
        unfinished: numbers of the images that are still to be drawn.
    """

    def __init__(
        self,
        model: nn.Module,
        input_ids: torch.LongTensor,
        window: int,
        max_length: int,
        processors: LogitsProcessorList,
        noise: "_Noise | None",
    ):
        batch, length = input_ids.shape
        self.model, self.window, self.max_length = model, window, max_length
        self.processors, self.noise = processors, noise
        # A config answers slowly.
        self._layers, self._last_position = model.config.num_hidden_layers, model.config.n_positions - 1
        self._left, self._above = model.config.num_channels, model.config.num_channels * model.config.grid[1]
        # The columns behind the last id take what a pass gives for images that end before others.
        self.ids = input_ids.new_zeros((batch, max_length + window), dtype=torch.long)
        self.ids[:, :length] = input_ids
        self.known = torch.full((batch,), length, device=input_ids.device)
        self.looked_at = self.known.clone()
        self.unfinished = list(range(batch))
        self._rows = torch.arange(batch, device=input_ids.device)
        self._columns = torch.arange(max_length + window, device=input_ids.device)
        self._counts = [length] * batch
        self._cache = _RaggedCache(max_length + window)
        self._is_plain = is_plain_model(model)
        self._span_decoders: dict[torch.Size, SpanDecoder] = {}
        if length > 1:
            # Passes begin with the last known id.
            places = self._columns[: length - 1].expand(batch, -1)
            self._run(self._embed(places), places, length - 1, slice(None))
            # No pass is as wide again.
            self._span_decoders.clear()

    def copy_ahead(self, forecast: str) -> None:
        """Forecasts by copies of earlier ids: all that are unknown, or those that no pass has looked at."""
        if self.window == 1:
            return
        known = self.known[self._rows, None]
        first = self.looked_at[self._rows, None] if forecast == "fixed_point" else known
        places = known + self._columns[: self.window - 1]
        # As many steps back as lead to something that isn't itself to be filled in.
        source = places - ((places - first) // self._left + 1) * self._left
        higher = places - ((places - first) // self._above + 1) * self._above
        source = higher.where(higher > 0, source)
        copied = self._get(source.clamp(min=0)).where(source > 0, 0)
        self._put(places, copied.where(places >= first, self._get(places)))

    def check(self, exit_layer: int) -> None:
        """One pass over the first W unknown ids of every image, with forecasts in front of all but the first."""
        if self.noise is not None:
            self.noise.reach(self.unfinished, self._counts)
        places = self.known[self._rows, None] - 1 + self._columns[: self.window]
        hidden = self._draft(places, exit_layer) if exit_layer else self._embed(places)
        hidden = self._run(hidden, places, max(self._counts) - 1 + self.window, slice(exit_layer, None))
        drawn = self._draw(hidden, places)
        right = (drawn[:, :-1] == self._get(places[:, 1:])).long().cumprod(dim=1).sum(dim=1)
        self._put(places + 1, drawn)
        self.known[self._rows] = (places[:, 0] + 2 + right).clamp(max=self.max_length)
        self.looked_at[self._rows] = places[:, -1] + 2
        self._look()

    def _draft(self, places: torch.LongTensor, exit_layer: int) -> torch.Tensor:
        """Forecasts id by id from the first layers; returns what they give for the ids at `places`, (A, w, C)."""
        states: list[torch.Tensor] = []
        for column in places.split(1, dim=1):
            end = max(self._counts) + len(states)
            states.append(self._run(self._embed(column), column, end, slice(exit_layer)))
            if len(states) < places.shape[1]:
                self._put(column + 1, self._draw(states[-1], column))
        return torch.cat(states, dim=1)

    def _draw(self, hidden: torch.Tensor, places: torch.LongTensor) -> torch.LongTensor:
        """The ids behind `places`, (A, w), from the output of a layer."""
        logits = self.model.lm_head(self.model.transformer.ln_f(hidden)).float()
        if not bool(logits.isfinite().all()):
            raise ValueError(NOT_FINITE)
        scores = self.processors(None, logits.flatten(0, 1)).view_as(logits)
        if self.noise is None:
            return scores.argmax(dim=-1)
        return pick_values(scores, self.noise.at(self._rows, places + 1))

    def _embed(self, places: torch.LongTensor) -> torch.Tensor:
        backbone = self.model.transformer
        return backbone.wte(self._get(places)) + backbone.wpe(self._positions(places))

    def _run(self, hidden: torch.Tensor, places: torch.LongTensor, end: int, layers: slice) -> torch.Tensor:
        """Some layers on the ids at `places`, (A, w), all of which lie before `end`."""
        self._cache.turn_to(places, end)
        blocks, distances = self.model.transformer.h[layers], places.unsqueeze(-1) - self._columns[:end]
        masks = {None: (distances >= 0).unsqueeze(1)}
        for window in {block.attn.window for block in blocks} - {None}:
            masks[window] = masks[None] & (distances < window).unsqueeze(1)
        rotation = rotation_of(self.model.config, self._positions(places), hidden.dtype)
        if self._is_plain:
            numbers = range(self._layers)[layers]
            return self._span_decoder(places.shape).run(hidden, masks, self._cache, rotation, numbers)
        for block in blocks:
            hidden = block(hidden, masks[block.attn.window], self._cache, rotation)
        return hidden

    def _positions(self, places: torch.LongTensor) -> torch.LongTensor:
        # What lies behind the last id of an image has no position; nothing comes of it.
        return places.clamp(max=self._last_position)

    def _span_decoder(self, shape: torch.Size) -> SpanDecoder:
        if shape not in self._span_decoders:
            self._span_decoders[shape] = SpanDecoder(self.model, *shape)
        return self._span_decoders[shape]

    def _get(self, places: torch.LongTensor) -> torch.LongTensor:
        return self.ids.take(places + self._rows[:, None] * self.ids.shape[1])

    def _put(self, places: torch.LongTensor, values: torch.LongTensor) -> None:
        self.ids.put_(places + self._rows[:, None] * self.ids.shape[1], values)

    def _look(self) -> None:
        """Reads how far the images are, and lets go of those that are finished."""
        counts = self.known[self._rows].tolist()
        going = [row for row, count in enumerate(counts) if count < self.max_length]
        if len(going) < len(counts):
            self.unfinished = [self.unfinished[row] for row in going]
            kept = torch.tensor(going, dtype=torch.long, device=self._rows.device)
            self._rows = self._rows[kept]
            self._cache.keep(kept)
            self._span_decoders.clear()
        self._counts = [counts[row] for row in going]


class _RaggedCache:
    """
    Keys and values of images that are known up to ids of their own: what is written stands at its place. It has room
    for the whole sequence in windowed layers too, for what an image's window is differs from image to image.
    """

    def __init__(self, length: int):
        self.length = length
        self._states: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def turn_to(self, places: torch.LongTensor, end: int) -> None:
        """What comes next belongs at `places`, (A, w), and sees what lies before `end`."""
        rows = torch.arange(len(places), device=places.device).unsqueeze(1)
        self._index, self._end = (places + rows * self.length).flatten(), end

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes (A, H, w, D) of one layer, gives (A, H, end, D)."""
        batch, heads, _, size = key.shape
        if layer_idx not in self._states:
            self._states[layer_idx] = tuple(key.new_zeros((batch, self.length, heads, size)) for _ in range(2))
        for state, new in zip(self._states[layer_idx], (key, value), strict=True):
            new = new.transpose(1, 2).reshape(-1, heads, size)
            state.view(-1, heads, size).index_copy_(0, self._index, new)
        key, value = (state[:, : self._end].transpose(1, 2) for state in self._states[layer_idx])
        return key, value

    def keep(self, rows: torch.LongTensor) -> None:
        self._states = {layer: tuple(state[rows] for state in states) for layer, states in self._states.items()}


class _Noise:
    """
    The noise of the next W ids of every image, taken from the generators in the order in which drawing id by id takes
    it: for each id as many numbers as there are values, of one image or of all at once.
    """

    def __init__(self, model: nn.Module, num_images: int, window: int, max_length: int, generator: Generators):
        self.max_length, self.generator = max_length, generator
        # A ring: id i is at i modulo W. In float32, like the logits that `generate` draws from.
        self._ring = torch.ones((num_images, window, model.config.num_values), device=model.device)
        self._slots = [list(row) for row in self._ring]
        self._is_shared = generator is None or isinstance(generator, torch.Generator)
        self._reached: list[int] | None = None
        # With one generator for all images, what was drawn for those that are behind.
        self._waiting: dict[int, torch.Tensor] = {}

    def reach(self, rows: list[int], known: list[int]) -> None:
        """Draws the noise of the W ids from `known` on, for some images."""
        window = self._ring.shape[1]
        if self._reached is None:
            self._reached = [known[0]] * len(self._ring)
        for row, count in zip(rows, known, strict=True):
            end = min(count + window, self.max_length)
            for place in range(self._reached[row], end):
                self._fill(row, place)
            self._reached[row] = end
        slowest = min(self._reached)
        self._waiting = {place: noise for place, noise in self._waiting.items() if place >= slowest}

    def at(self, rows: torch.LongTensor, places: torch.LongTensor) -> torch.Tensor:
        """Noise of the ids at `places`, (A, w), of the images `rows`, (A,): of shape (A, w, V)."""
        return self._ring[rows[:, None], places % self._ring.shape[1]]

    def _fill(self, row: int, place: int) -> None:
        slot = self._slots[row][place % len(self._slots[row])]
        if not self._is_shared:
            slot.exponential_(generator=self.generator[row])
            return
        if place not in self._waiting:
            self._waiting[place] = fill_exponentially(torch.empty_like(self._ring[:, 0]), self.generator)
        slot.copy_(self._waiting[place][row])


__all__ = ["FORECASTS", "check_parallel_options", "parallel_decode", "parallel_passes"]
