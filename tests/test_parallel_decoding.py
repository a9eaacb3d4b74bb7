"""Pixels drawn in parallel are those drawn one after the other from the same noise, in fewer passes."""

import functools

import pytest
import torch
from tiny_models import random_tokens, tiny_causal, tiny_config, tiny_masked, with_start
from transformers import DynamicCache, LogitsProcessorList
from transformers.generation import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper

from hf_igpt import ImageGPTForCausalImageModeling
from hf_igpt.completion_igpt import stream_hidden
from hf_igpt.fast_decoding_igpt import is_plain_model
from hf_igpt.generation import complete, sample
from hf_igpt.parallel_decoding_igpt import FORECASTS, parallel_decode, parallel_passes


START = 10  # of the tiny models
# 4 x 5 tokens: the window may be shorter than a row, a row, and longer than the image.
GRID = [4, 5]
WINDOWS = (1, 5, 7, 40)


def prefix(model, length: int, batch: int) -> torch.Tensor:
    return with_start(model.config, random_tokens(model.config, batch=batch))[:, :length]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def count_passes(model, ids, window, forecast=None, **options) -> int:
    return sum(1 for _ in parallel_passes(model, ids, window, forecast, **options))


@functools.cache
def one_by_one(model, batch: int, length: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Images with a pass for every pixel, and the states in which the generators are left."""
    sources = generators(*range(batch))
    return model.generate(prefix(model, length, batch), generator=sources), [g.get_state() for g in sources]


@pytest.fixture(scope="module")
def model():
    return tiny_causal(image_size=GRID)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("forecast", FORECASTS)
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 9), (2, 20)])
def test_images_are_those_drawn_pixel_by_pixel(model, forecast, window, batch, length):
    expected, left = one_by_one(model, batch, length)
    sources = generators(*range(batch))
    images = model.generate(prefix(model, length, batch), generator=sources, parallel_window=window, forecast=forecast)
    assert images.shape == (batch, 21)
    assert torch.equal(images, expected)
    # The generators are left where drawing pixel by pixel leaves them.
    for source, state in zip(sources, left, strict=True):
        assert torch.equal(source.get_state(), state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(3))
def test_many_images_of_many_models(seed, dtype):
    """Over 64 images of every model; the values drawn differ, so that a wrong noise would show."""
    model = tiny_causal(dtype=dtype, seed=seed, image_size=GRID, num_hidden_layers=3)
    seeds = range(100 * seed, 100 * seed + 64)
    expected = model.generate(num_return_sequences=64, generator=generators(*seeds))
    assert len({tuple(image.tolist()) for image in expected}) == 64
    for forecast in FORECASTS:
        images = model.generate(
            num_return_sequences=64, generator=generators(*seeds), parallel_window=6, forecast=forecast
        )
        assert torch.equal(images, expected), forecast


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"temperature": 1.7, "top_k": 4},
        {"top_p": 0.6},
        {"min_p": 0.1, "typical_p": 0.9},
        {"suppress_tokens": [4, 7]},
        {"renormalize_logits": True, "top_k": 3},
        {"do_sample": False},
        {"max_new_tokens": 3},
        {"max_length": 11},
    ],
    ids=str,
)
@pytest.mark.parametrize("forecast", ["fixed_point", "shallow_exit"])
def test_options_of_generate_hold(model, options, forecast):
    ids = prefix(model, 6, batch=3)
    expected = model.generate(ids, generator=generators(3, 4, 5), **options)
    images = model.generate(ids, generator=generators(3, 4, 5), parallel_window=4, forecast=forecast, **options)
    assert torch.equal(images, expected)
    plain = model.generate(ids, generator=generators(3, 4, 5))
    assert not torch.equal(images, plain[:, : images.shape[1]]) or images.shape != plain.shape


@pytest.mark.parametrize("window", [1, 4, 40])
def test_one_generator_and_the_global_random_state(model, window):
    """Their noise is drawn for all images at once, which are at different pixels."""
    expected = model.generate(num_return_sequences=5, generator=torch.Generator().manual_seed(3))
    source = torch.Generator().manual_seed(3)
    images = model.generate(num_return_sequences=5, generator=source, parallel_window=window)
    assert torch.equal(images, expected)
    drawn = []
    for options in ({}, {"parallel_window": window}):
        torch.manual_seed(7)
        drawn += [model.generate(num_return_sequences=5, **options), torch.get_rng_state()]
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3])


def test_the_global_random_state_is_left_alone_with_generators(model):
    state = torch.get_rng_state()
    model.generate(num_return_sequences=2, generator=generators(1, 2), parallel_window=4)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_image_is_the_same_in_any_batch(model):
    ids = prefix(model, 4, batch=3)
    images = model.generate(ids, generator=generators(3, 4, 5), parallel_window=5)
    for image, seed in enumerate((3, 4, 5)):
        alone = model.generate(ids[image : image + 1], generator=generators(seed), parallel_window=3)
        assert torch.equal(alone[0], images[image])


@pytest.mark.parametrize("forecast", FORECASTS)
def test_tokens_of_three_channels(forecast):
    model = tiny_causal(image_size=[2, 3], num_channels=3)
    expected = model.generate(num_return_sequences=3, generator=generators(1, 2, 3))
    images = model.generate(
        num_return_sequences=3, generator=generators(1, 2, 3), parallel_window=10, forecast=forecast
    )
    assert torch.equal(images, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"use_bias": True},
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3},
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 6},
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("is_hooked", [False, True])
def test_other_architectures_and_backends(options, backend, is_hooked):
    """Models with hooks are run as they are, others by the loop for CPUs."""
    model = tiny_causal(image_size=GRID, **options)
    expected = model.generate(num_return_sequences=3, generator=generators(1, 2, 3))
    model.set_attn_implementation(backend)
    if is_hooked:
        model.transformer.h[1].register_forward_hook(lambda *_: None)
    assert is_plain_model(model) is not is_hooked
    for forecast in ("fixed_point", "shallow_exit"):
        images = model.generate(
            num_return_sequences=3, generator=generators(1, 2, 3), parallel_window=4, forecast=forecast
        )
        assert torch.equal(images, expected)


@torch.no_grad()
def certain_model(copies: bool) -> ImageGPTForCausalImageModeling:
    """
    Nearly certain of every value: the one of the token before, and 3 after the start token; or the column, in the
    first row, and the row. The layers do nothing.
    """
    model = ImageGPTForCausalImageModeling(tiny_config(image_size=GRID)).double().eval()
    for name, parameter in model.named_parameters():
        parameter.fill_("ln_" in name)
    values = torch.arange(10)
    model.lm_head.weight[values, values] = 10
    if copies:
        model.transformer.wte.weight[values, values] = 1
        model.transformer.wte.weight[START, 3] = 1
    else:
        model.transformer.wpe.weight[
            torch.arange(20), torch.arange(20) // 5 + (torch.arange(20) < 5) * torch.arange(20)
        ] = 1
    return model


def test_predictable_models_take_few_passes():
    ids, options = torch.full((2, 1), START), {"generator": generators(0, 1)}
    copying, placing = certain_model(copies=True), certain_model(copies=False)
    assert torch.equal(copying.generate(ids, **options)[:, 1:], torch.full((2, 20), 3))
    assert len(placing.generate(ids, **options)[0].unique()) == 6
    for model in (copying, placing):
        assert count_passes(model, ids, 1, **options) == 20
        # What leaves the first layer is what leaves the last.
        assert count_passes(model, ids, 5, "shallow_exit", **options) == 4
    # The first pass finds the first pixel; from then on all forecasts are right.
    assert count_passes(copying, ids, 4, "above", **options) == 6
    assert count_passes(copying, ids, 40, "above", **options) == 2
    # One pass is enough for what doesn't depend on other pixels, the next one confirms it.
    assert count_passes(placing, ids, 40, "fixed_point", **options) == 2
    # Where every pixel depends on the one before, iteration hands a wrong value on.
    assert count_passes(copying, ids, 40, "fixed_point", **options) == 20


@pytest.mark.parametrize("forecast", FORECASTS)
def test_every_pass_finds_a_pixel_of_every_image_and_images_go_on_by_themselves(model, forecast):
    ids, known = prefix(model, 3, batch=6), [torch.full((6,), 3)]
    expected = model.generate(ids, generator=generators(*range(6)))
    for images, lengths in parallel_passes(model, ids, 4, forecast, generator=generators(*range(6))):
        assert ((lengths > known[-1]) | (lengths == 21)).all() and (lengths - known[-1] <= 4).all()
        known.append(lengths)
        for image, other, length in zip(images, expected, lengths.tolist(), strict=True):
            assert torch.equal(image[:length], other[:length])
    assert any(len(lengths.unique()) > 1 for lengths in known), "all images were at one pixel all the time"
    alone = [count_passes(model, ids[i : i + 1], 4, forecast, generator=generators(i)) for i in range(6)]
    assert len(known) - 1 == max(alone)


def test_the_last_iterate_is_a_better_forecast_than_copies():
    model, ids = tiny_causal(image_size=[6, 6]), torch.full((16, 1), START)
    passes = {
        forecast: count_passes(model, ids, 8, forecast, generator=generators(*range(16))) for forecast in FORECASTS
    }
    assert passes["fixed_point"] < passes["above"] <= 36 and passes["shallow_exit"] < passes["above"]


@torch.no_grad()
def test_no_layer_runs_twice_for_a_shallow_exit(model, monkeypatch):
    lengths = {0: [], 1: []}
    for layer, block in enumerate(model.transformer.h):
        forward = block.forward

        def counted(hidden, *args, forward=forward, layer=layer):
            lengths[layer].append(hidden.shape[1])
            return forward(hidden, *args)

        monkeypatch.setattr(block, "forward", counted)
    passes = count_passes(model, torch.full((1, 1), START), 3, "shallow_exit", exit_layer=1, generator=generators(0))
    assert set(lengths[0]) == {1} and sum(lengths[0]) == sum(lengths[1]) and len(lengths[1]) == passes


def test_samples_and_completions(model):
    tokens = random_tokens(model.config, batch=3).numpy()
    for draw in (
        lambda **options: sample(model, 5, seed=4, **options),
        lambda **options: complete(model, tokens, 2, num_samples=2, seed=4, **options),
    ):
        expected = draw(batch_size=2, top_k=6)
        for forecast in FORECASTS:
            images = draw(batch_size=5, top_k=6, parallel_window=4, forecast=forecast)
            assert (images == expected).all()


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"parallel_window": 0}, "`parallel_window` must be a whole number of at least 1, got 0"),
        ({"parallel_window": True}, "at least 1, got True"),
        ({"parallel_window": 2.0}, "at least 1, got 2.0"),
        ({"parallel_window": 4, "forecast": "guess"}, "fixed_point, above, shallow_exit, got 'guess'"),
        ({"forecast": "above"}, "no effect without `parallel_window`"),
        ({"exit_layer": 1}, "no effect without `parallel_window`"),
        ({"parallel_window": 4, "exit_layer": 1}, 'no effect with forecast="fixed_point"'),
        ({"parallel_window": 4, "forecast": "shallow_exit", "exit_layer": 0}, "from 1 to 1, .* got 0"),
        ({"parallel_window": 4, "forecast": "shallow_exit", "exit_layer": 2}, "from 1 to 1, .* got 2"),
        ({"parallel_window": 4, "num_beams": 2}, "doesn't go with beam s"),
        ({"parallel_window": 4, "repetition_penalty": 1.5}, "RepetitionPenaltyLogitsProcessor"),
        ({"parallel_window": 4, "prompt_lookup_num_tokens": 2}, "doesn't go with assisted generation"),
        ({"parallel_window": 4, "return_dict_in_generate": True}, "`return_dict_in_generate`"),
        ({"parallel_window": 4, "use_cache": False}, "`use_cache=False`"),
        ({"parallel_window": 4, "cache_implementation": "static"}, "`cache_implementation`"),
        ({"parallel_window": 4, "eos_token_id": 3}, "another end than length"),
        ({"parallel_window": 4, "streamer": object()}, "`streamer` doesn't go"),
        ({"parallel_window": 4, "cache": DynamicCache()}, "`cache` doesn't go"),
        ({"parallel_window": 4, "attention_mask": torch.tensor([[0, 1]])}, "`attention_mask` with zeros"),
        ({"parallel_window": 4, "generator": generators(1, 2)}, "one for each of the 1 images"),
        ({"parallel_window": 4, "max_length": 30}, "`max_length` must be at most 21"),
    ],
    ids=str,
)
def test_what_does_not_go_is_refused(model, options, pattern):
    with pytest.raises(ValueError, match=pattern):
        model.generate(prefix(model, 2, batch=1), **options)


def test_a_streamer_by_position_is_refused(model):
    with pytest.raises(ValueError, match="got 8 arguments: give the others by name"):
        model.generate(prefix(model, 2, batch=1), *[None] * 6, object(), parallel_window=4)


def test_models_that_are_refused(model):
    ids = torch.full((1, 1), START)
    masked = tiny_masked(image_size=GRID)
    with pytest.raises(ValueError, match="must be a next-pixel model"):
        parallel_decode(masked, ids, 4)
    with pytest.raises(ValueError, match="`parallel_window` is not for masked models"):
        sample(masked, 1, parallel_window=4)
    with pytest.raises(ValueError, match="evaluation mode"):
        tiny_causal().train().generate(ids, parallel_window=4)
    other = tiny_causal(image_size=GRID)
    other.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="`attn_implementation` must be one of eager, sdpa"):
        other.generate(ids, parallel_window=4)
    hidden = torch.ones((1, 20), dtype=torch.bool)
    with pytest.raises(ValueError, match="not for images that are watched row by row"):
        stream_hidden(model, hidden.long(), hidden, [0], parallel_window=4)


def test_a_processor_of_ones_own_may_not_look_back(model):
    ids = torch.full((1, 1), START)
    warm = LogitsProcessorList([TemperatureLogitsWarper(0.5)])
    expected = model.generate(ids, generator=generators(1), logits_processor=warm)
    assert torch.equal(parallel_decode(model, ids, 4, processors=warm, generator=generators(1)), expected)
    with pytest.raises(ValueError, match="may look at the pixels before"):
        parallel_decode(model, ids, 4, processors=LogitsProcessorList([RepetitionPenaltyLogitsProcessor(2.0)]))


def test_lengths_and_ids_out_of_range(model):
    for length, most in ((21, None), (4, 4), (4, 22)):
        with pytest.raises(ValueError, match="`max_length` must be above"):
            parallel_decode(model, torch.full((1, length), 3), 4, max_length=most)
    with pytest.raises(ValueError, match=r"`input_ids` must be in \[0, 10\], got 11"):
        parallel_decode(model, torch.tensor([[START, 11]]), 4)


def test_damaged_logits_are_not_drawn_from():
    model = tiny_causal(image_size=GRID)
    with torch.no_grad():
        model.lm_head.weight[2, 3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        model.generate(generator=generators(1), parallel_window=4)
