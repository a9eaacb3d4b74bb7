"""
Where `generate` of transformers takes something for granted that isn't so for a next-pixel model: one logit for every
id, sequences of any length, one name of the cache, one random state for all images.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.generation import (
    BaseStreamer,
    GenerateDecoderOnlyOutput,
    GenerationConfig,
    GenerationMode,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    PromptLookupCandidateGenerator,
    StoppingCriteriaList,
)
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast

from .configuration_igpt import FULL, SLIDING, ImageGPTConfig
from .fast_decoding_igpt import Choose, can_decode, decode
from .generation_igpt import Generators, check_generators, draw_values
from .parallel_decoding_igpt import check_parallel_options, parallel_decode


# transformers 5.24 renamed `past_key_values` to `cache`, in what `generate` passes too. Our models take both names;
# their outputs carry the one that the installed version reads.
CACHE_NAME = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"

# By the type of layers. Both give masks for both directions where `is_causal` is False.
MASKS = {FULL: create_causal_mask, SLIDING: create_sliding_window_causal_mask}


class ImageGenerationMixin:
    """Stands in front of `GenerationMixin` among the bases of a next-pixel head."""

    def generate(
        self,
        *args,
        generator: Generators = None,
        parallel_window: int | None = None,
        forecast: str | None = None,
        exit_layer: int | None = None,
        **kwargs,
    ):
        """
        As in transformers, which draws from the global random state, or from generators of one's own.

        Args:
            generator: on the model's device, one for all images or one for each image that is drawn (those of one
                prompt next to each other). With one for each, an image comes out the same, up to rounding, whatever
                else is in the batch. The global random state is left as it was.
            parallel_window: pixels that one pass of the model looks at, which are forecast and checked. The images
                are the same, up to rounding, in fewer passes, which on a CPU take longer in all as a rule; see
                [`parallel_decode`]. By default each pixel has a pass of its own.
            forecast: with `parallel_window`, how pixels are forecast: "fixed_point" (the default), "above" or
                "shallow_exit".
            exit_layer: with "shallow_exit", how many layers draw the forecast; by default a quarter of them.

        Raises:
            ValueError: generators for another number of images, or for beam search; an option that doesn't go with
                `parallel_window`.
        """
        if parallel_window is not None:
            check_parallel_options(parallel_window, forecast, exit_layer)
            if len(args) > 2:
                raise ValueError(
                    "`parallel_window` takes `inputs` and `generation_config` by position, got "
                    f"{len(args)} arguments: give the others by name."
                )
            options = {"window": parallel_window, "forecast": forecast, "exit_layer": exit_layer}
            return super().generate(*args, custom_generate=_parallel(options, generator, kwargs), **kwargs)
        for name, value in (("forecast", forecast), ("exit_layer", exit_layer)):
            if value is not None:
                raise ValueError(f"`{name}` has no effect without `parallel_window`: leave it out, or give both.")
        if generator is None:
            return super().generate(*args, **kwargs)
        drawer = _Drawer(generator)
        kwargs["logits_processor"] = LogitsProcessorList([*(kwargs.get("logits_processor") or []), drawer])
        # transformers draws all the same, from the one token that the drawer leaves.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            return super().generate(*args, **kwargs)

    def _sample(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: BaseStreamer | None = None,
        **model_kwargs,
    ) -> GenerateDecoderOnlyOutput | torch.LongTensor:
        """As in transformers, several times faster for plain requests on a CPU: see `fast_decoding_igpt.py`."""
        if synced_gpus or not can_decode(self, input_ids, generation_config, stopping_criteria, model_kwargs):
            return super()._sample(
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config,
                synced_gpus=synced_gpus,
                streamer=streamer,
                **model_kwargs,
            )
        choose = _choice(logits_processor, generation_config.do_sample)
        ids, cache = decode(self, input_ids, choose, generation_config, stopping_criteria, streamer, model_kwargs)
        if not generation_config.return_dict_in_generate:
            return ids
        return GenerateDecoderOnlyOutput(sequences=ids, **{CACHE_NAME: cache})

    @staticmethod
    def create_masks_for_generate(config, inputs_embeds, attention_mask, past_key_values=None, cache=None, **kwargs):
        """The masks for a static cache, by type of layers. transformers' own takes `layer_types` for given."""
        cache = one_cache(cache, past_key_values)
        types = dict.fromkeys(config.attention_types)
        return {layer_type: MASKS[layer_type](config, inputs_embeds, attention_mask, cache) for layer_type in types}

    def compute_transition_scores(self, sequences, scores, beam_indices=None, normalize_logits=False):
        """As in transformers."""
        with self._values_as_vocabulary():
            return super().compute_transition_scores(sequences, scores, beam_indices, normalize_logits)

    def _validate_generated_length(self, generation_config, *args, **kwargs):
        # A too long request would otherwise fail only after the whole grid has been sampled.
        limit = self.config.n_positions + 1
        if generation_config.max_length > limit:
            raise ValueError(
                f"`max_length` must be at most {limit}, the start token and the {limit - 1} tokens of an image, got "
                f"{generation_config.max_length} (or as many by `max_new_tokens`)."
            )
        super()._validate_generated_length(generation_config, *args, **kwargs)

    def _get_logits_processor(self, generation_config, *args, **kwargs):
        # The encoder penalties look up the logits of every prompt token; the start token has none.
        prompt = kwargs.get("encoder_input_ids")
        if prompt is not None and prompt.dim() == 2 and not prompt.is_floating_point():
            kwargs["encoder_input_ids"] = prompt[:, 1:]
        with self._values_as_vocabulary():
            processors = super()._get_logits_processor(generation_config, *args, **kwargs)
        return _drawers_last(processors, generation_config)

    def _get_candidate_generator(self, *args, **kwargs):
        with self._values_as_vocabulary():
            generator = super()._get_candidate_generator(*args, **kwargs)
        if isinstance(generator, PromptLookupCandidateGenerator):
            # It proposes tokens past the end of the image.
            propose, limit = generator.get_candidates, self.config.n_positions
            generator.get_candidates = lambda input_ids, **_: (propose(input_ids)[0][:, :limit], None)
        return generator

    @contextlib.contextmanager
    def _values_as_vocabulary(self) -> Iterator[None]:
        # These parts of `generate` size their tensors by `config.vocab_size`; the logits have one column fewer.
        vocab_size = self.config.vocab_size
        self.config.vocab_size = self.config.num_values
        try:
            yield
        finally:
            self.config.vocab_size = vocab_size


def _parallel(options: dict[str, Any], generator: Generators, arguments: dict[str, Any]) -> Callable:
    """What `generate` calls, with everything prepared, in place of its own sampling."""
    # transformers drops the first two in front of a method that isn't its own.
    refused = ("streamer", "assistant_model", "custom_generate", "cache", "past_key_values", "inputs_embeds")
    for name in refused:
        if arguments.get(name) is not None:
            raise ValueError(f"`{name}` doesn't go with `parallel_window`: leave one of them out.")

    def draw(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        _check_plain(generation_config, stopping_criteria, model_kwargs.get("attention_mask"))
        return parallel_decode(
            model,
            input_ids,
            **options,
            max_length=generation_config.max_length,
            do_sample=bool(generation_config.do_sample),
            processors=logits_processor,
            generator=generator,
        )

    return draw


def _check_plain(
    config: GenerationConfig, stopping_criteria: StoppingCriteriaList, attention_mask: torch.Tensor | None
) -> None:
    """Refuses what drawing pixels in parallel would leave without effect."""
    mode = config.get_generation_mode()
    requirements = (
        (mode in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH), f"{mode.value.replace('_', ' ')}"),
        (not config.return_dict_in_generate, "`return_dict_in_generate`"),
        (config.use_cache is not False, "`use_cache=False`"),
        (config.cache_implementation is None, "`cache_implementation`"),
        (config.prefill_chunk_size is None, "`prefill_chunk_size`"),
        (all(isinstance(criterion, MaxLengthCriteria) for criterion in stopping_criteria), "another end than length"),
        # transformers drops a mask that hides nothing.
        (attention_mask is None, "an `attention_mask` with zeros"),
    )
    for is_met, what in requirements:
        if not is_met:
            raise ValueError(f"`parallel_window` doesn't go with {what}: leave one of them out.")


class _Drawer(LogitsProcessor):
    """Draws the next token of every image, and leaves `generate` this one to draw."""

    def __init__(self, generator: Generators):
        self.generator = generator

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        drawn = self.draw(scores).unsqueeze(1)
        values = torch.arange(scores.shape[1], device=scores.device)
        # One score that isn't finite makes them all so, and `generate` refuses to draw.
        return scores.log_softmax(dim=-1).masked_fill(values != drawn, -torch.inf)

    def draw(self, scores: torch.FloatTensor) -> torch.LongTensor:
        """Of shape (B,), from scores of shape (B, V)."""
        check_generators(self.generator, len(scores))
        return draw_values(scores, self.generator)


def _choice(processors: LogitsProcessorList, do_sample: bool) -> Choose:
    """What transformers' loop does with the logits of the next tokens."""
    if processors and isinstance(processors[-1], _Drawer):
        return functools.partial(_draw, LogitsProcessorList(processors[:-1]), processors[-1])
    return functools.partial(_choose, processors, do_sample)


def _choose(
    processors: LogitsProcessorList, do_sample: bool, input_ids: torch.LongTensor, logits: torch.FloatTensor
) -> torch.LongTensor:
    scores = processors(input_ids, logits)
    if not do_sample:
        return scores.argmax(dim=-1)
    return torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)


def _draw(
    processors: LogitsProcessorList, drawer: _Drawer, input_ids: torch.LongTensor, logits: torch.FloatTensor
) -> torch.LongTensor:
    scores = processors(input_ids, logits)
    # `torch.multinomial` refuses the same.
    if not bool(scores.amax(dim=-1).isfinite().all()):
        raise RuntimeError("The model's logits are inf or nan, so nothing can be drawn from them.")
    return drawer.draw(scores)


def _drawers_last(processors: LogitsProcessorList, generation_config: GenerationConfig) -> LogitsProcessorList:
    # transformers appends temperature and truncation to what the caller gives.
    drawers = [processor for processor in processors if isinstance(processor, _Drawer)]
    if not drawers:
        return processors
    if generation_config.num_beams not in (None, 1):
        raise ValueError(f"`generator` is for sampling: leave it out, or num_beams={generation_config.num_beams}.")
    others = [processor for processor in processors if not isinstance(processor, _Drawer)]
    return LogitsProcessorList([*others, *(drawers if generation_config.do_sample else [])])


def one_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache under whichever of its two names it was given. Raises ValueError for both."""
    if cache is not None and past_key_values is not None:
        raise ValueError("`cache` and `past_key_values` are one argument under two names: give only one.")
    return past_key_values if cache is None else cache


def paper_generation_config(config: ImageGPTConfig) -> GenerationConfig:
    """Plain sampling of a whole image at temperature 1, as in the paper; transformers' default of top-k 50 is not."""
    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_length=config.n_positions + 1,
        bos_token_id=config.start_token_id,
    )


__all__ = ["CACHE_NAME", "MASKS", "ImageGenerationMixin", "one_cache", "paper_generation_config"]
