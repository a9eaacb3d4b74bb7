import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import random_tokens, tiny_causal, tiny_masked
from transformers import StaticCache

from hf_igpt import ImageGPTConfig, completion_igpt
from hf_igpt.causal_generation_igpt import CACHE_NAME
from hf_igpt.completion_igpt import image_seeds, stream_hidden
from hf_igpt.generation import complete, inpaint, sample
from hf_igpt.generation.sampling import default_batch_size


@pytest.fixture(scope="module")
def model():
    return tiny_causal(torch.float32)


@pytest.fixture(scope="module")
def masked():
    return tiny_masked(torch.float32)


@pytest.fixture(params=["causal", "masked"])
def either(request, model, masked):
    return {"causal": model, "masked": masked}[request.param]


def probabilities(model) -> np.ndarray:
    """Of every image of a model with few of them, from teacher forcing."""
    values, length = model.config.num_values, model.config.n_positions
    images = torch.tensor(list(itertools.product(range(values), repeat=length)))
    with torch.inference_mode():
        chosen = model(labels=images).logits.double().log_softmax(-1).gather(-1, images[..., None])
    return chosen.squeeze(-1).sum(1).exp().numpy()


def frequencies(model, images: np.ndarray) -> np.ndarray:
    values, length = model.config.num_values, model.config.n_positions
    codes = images @ values ** np.arange(length - 1, -1, -1)
    return np.bincount(codes, minlength=values**length)


def assert_drawn_from(counts: np.ndarray, expected: np.ndarray) -> None:
    """Chi-square, at most five standard deviations above its mean."""
    expected = expected / expected.sum() * counts.sum()
    assert counts[expected == 0].sum() == 0
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


def test_images_come_with_the_models_probabilities():
    model = tiny_causal(torch.float32, vocab_size=4, image_size=[1, 3])
    expected = probabilities(model)
    assert expected.sum() == pytest.approx(1) and expected.max() > 3 * expected.min()
    images = sample(model, 6000, batch_size=3000)
    assert images.shape == (6000, 3) and images.dtype == np.int64
    assert_drawn_from(frequencies(model, images), expected)
    # The test itself can tell: the uniform distribution isn't taken for the model's.
    with pytest.raises(AssertionError):
        assert_drawn_from(frequencies(model, images), np.ones_like(expected))


def test_completions_come_with_the_conditional_probabilities():
    model = tiny_causal(torch.float32, vocab_size=4, image_size=[3, 1])
    expected = probabilities(model).reshape(3, 9)
    given = np.array([[0, 0, 0], [2, 1, 1]])
    drawn = complete(model, given, 1, num_samples=3000, batch_size=3000)
    assert drawn.shape == (2, 3000, 3)
    for image, first in enumerate((0, 2)):
        assert (drawn[image, :, 0] == first).all()
        assert_drawn_from(frequencies(model, drawn[image]).reshape(3, 9)[first], expected[first])


def test_arguments_of_generate_reach_it(model):
    greedy = sample(model, 3, top_k=1)
    assert (greedy == greedy[0]).all()
    with torch.inference_mode():
        logits = model(labels=torch.from_numpy(greedy[:1])).logits[0]
    np.testing.assert_array_equal(logits.argmax(-1).numpy(), greedy[0])
    cold = sample(model, 3, temperature=1e-4)
    np.testing.assert_array_equal(cold, greedy)
    assert (sample(model, 3) != greedy).any()


@pytest.mark.parametrize("rows_kept", [0, 1, 2])
def test_the_kept_rows_stay(model, rows_kept):
    given = random_tokens(model.config, 4).numpy()
    before = given.copy()
    drawn = complete(model, given, rows_kept, num_samples=3, batch_size=5)
    assert drawn.shape == (4, 3, 12) and drawn.min() >= 0 and drawn.max() < model.config.num_values
    kept = rows_kept * 4
    assert (drawn[:, :, :kept] == given[:, None, :kept]).all()
    assert (drawn[:, :, kept:] != given[:, None, kept:]).any(axis=(1, 2)).all()
    assert (drawn[:, 0] != drawn[:, 1]).any()
    np.testing.assert_array_equal(given, before)


def test_what_is_hidden_is_not_read(model):
    given = random_tokens(model.config, 2).numpy()
    other = given.copy()
    other[:, 4:] = 0
    np.testing.assert_array_equal(complete(model, given, 1), complete(model, other, 1))


def test_rows_of_three_tokens_a_cell():
    model = tiny_causal(torch.float32, image_size=[2, 2], num_channels=3)
    given = random_tokens(model.config, 2).numpy().astype(np.uint8)
    drawn = complete(model, given, 1)
    assert drawn.shape == (2, 1, 12) and (drawn[:, 0, :6] == given[:, :6]).all()


@pytest.mark.parametrize("rows_kept", [-1, 3, 100])
def test_rows_out_of_range(model, rows_kept):
    with pytest.raises(ValueError, match=f"`rows_kept` must be from 0 to 2 for a grid 3 high, got {rows_kept}"):
        complete(model, random_tokens(model.config, 2).numpy(), rows_kept)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: sample(m, 0),
        lambda m: sample(m, 2, batch_size=0),
        lambda m: complete(m, np.zeros((2, 12), dtype=int), 1, num_samples=0),
    ],
)
def test_nothing_to_draw(model, call):
    with pytest.raises(ValueError, match="at least one image and a batch size of at least 1"):
        call(model)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "1", None])
def test_wrong_seeds(model, seed):
    with pytest.raises(ValueError, match=f"`seed` must be a whole number of at least 0, got {seed!r}"):
        sample(model, 2, seed=seed)


def test_seeds(either):
    first, again, other = sample(either, 5, seed=3), sample(either, 5, seed=3), sample(either, 5, seed=4)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len({tuple(image) for image in first}) == 5
    # No seed repeats another one's images, in other places either.
    seen = {tuple(image) for seed in (*range(6), 1 << 12, 1 << 20, 1 << 40) for image in sample(either, 4, seed=seed)}
    assert len(seen) == 36


def test_seeds_of_images_do_not_meet():
    """In the 32 bits of a seed that torch's generator on the CPU reads."""
    seeds = [seed for call in (0, 1, 4096, 2**32, 2**62) for seed in image_seeds(call, range(500), [0, 1] * 250)]
    assert len({seed % 2**32 for seed in seeds}) == 2500
    assert image_seeds(7, [3], [1]) == image_seeds(7, [0, 3], [0, 1])[1:] != image_seeds(7, [1], [3])


def test_images_do_not_depend_on_the_batch(either):
    expected = sample(either, 7, seed=3, temperature=0.9, top_k=8, batch_size=7)
    for batch_size in (1, 2, 16):
        drawn = sample(either, 7, seed=3, temperature=0.9, top_k=8, batch_size=batch_size)
        np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(sample(either, 3, seed=3, temperature=0.9, top_k=8), expected[:3])


def test_completions_do_not_depend_on_what_is_drawn_beside_them(either):
    given = random_tokens(either.config, 4).numpy()
    expected = complete(either, given, 1, num_samples=3, seed=5)
    assert len({tuple(image) for image in expected.reshape(12, -1)}) == 12
    np.testing.assert_array_equal(complete(either, given, 1, num_samples=3, seed=5, batch_size=5), expected)
    np.testing.assert_array_equal(complete(either, given[:2], 1, num_samples=2, seed=5), expected[:2, :2])


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("num_steps", [None, 3])
def test_regions_of_a_batch_do_not_depend_on_each_other(masked, order, num_steps):
    """Images with fewer hidden pixels are finished sooner, and draw on with the others."""
    given = random_tokens(masked.config, 5).numpy()
    region = np.random.default_rng(0).random((5, 12)) < np.array([0.1, 0.9, 0, 0.5, 1])[:, None]
    options = {"num_samples": 2, "seed": 5, "num_steps": num_steps, "order": order}
    expected = inpaint(masked, given, region, **options)
    np.testing.assert_array_equal(inpaint(masked, given, region, batch_size=3, **options), expected)


def test_prefixes_of_a_batch_do_not_depend_on_each_other(model):
    given = random_tokens(model.config, 5).numpy()
    kept = np.array([3, 12, 0, 7, 3])
    region = np.arange(12) >= kept[:, None]
    expected = inpaint(model, given, region, num_samples=2, seed=5)
    np.testing.assert_array_equal(inpaint(model, given, region, num_samples=2, seed=5, batch_size=1), expected)
    given_again = np.broadcast_to(given[:, None], expected.shape)
    hidden = np.broadcast_to(region[:, None], expected.shape)
    np.testing.assert_array_equal(expected[~hidden], given_again[~hidden])
    assert (expected[[0, 2, 3, 4]] != given_again[[0, 2, 3, 4]]).any(axis=2).all()


def test_the_global_random_state_is_left_alone(either):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    drawn = sample(either, 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    np.testing.assert_array_equal(sample(either, 2), drawn)


@pytest.mark.parametrize("tiny", [tiny_causal, tiny_masked])
def test_the_mode_is_restored_and_dropout_is_off(tiny):
    model = tiny(torch.float32, embd_pdrop=0.5, resid_pdrop=0.5)
    expected = sample(model, 2)
    np.testing.assert_array_equal(sample(model.train(), 2), expected)
    assert model.training


def test_progress_counts_every_image(model):
    seen = []
    complete(model, random_tokens(model.config, 3).numpy(), 2, num_samples=3, batch_size=4, progress=seen.append)
    assert seen == [4, 4, 1]


# Masked models, and regions


def test_masked_images_are_those_of_generate(masked):
    drawn = sample(masked, 3, seed=5, num_steps=4, order="confidence", top_k=2)
    generators = [torch.Generator().manual_seed(seed) for seed in image_seeds(5, range(3), [0] * 3)]
    options = {"num_steps": 4, "order": "confidence", "top_k": 2, "generator": generators}
    np.testing.assert_array_equal(drawn, masked.generate(num_return_sequences=3, **options).numpy())
    assert drawn.dtype == np.int64 and (sample(masked, 3, seed=5, num_steps=4) != drawn).any()


@pytest.mark.parametrize("rows_kept", [0, 1, 2])
def test_completing_is_inpainting_the_rows_below(either, rows_kept):
    given = random_tokens(either.config, 4).numpy()
    region = np.zeros((3, 4), dtype=bool)
    region[rows_kept:] = True
    completed = complete(either, given, rows_kept, num_samples=2, batch_size=3, seed=4)
    np.testing.assert_array_equal(completed, inpaint(either, given, region, num_samples=2, batch_size=3, seed=4))
    kept = rows_kept * 4
    assert completed.shape == (4, 2, 12) and (completed[:, :, :kept] == given[:, None, :kept]).all()
    assert (completed[:, :, kept:] != given[:, None, kept:]).any(axis=(1, 2)).all()


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_any_region_of_a_masked_model(masked, order):
    """A region for each image, of different sizes, one of them empty."""
    given = random_tokens(masked.config, 4).numpy().astype(np.uint16)
    region = np.random.default_rng(0).random((4, 12)) < np.array([0, 0.1, 0.5, 0.9])[:, None]
    assert not region[0].any() and len(set(region.sum(axis=1))) == 4
    seen = []
    options = {"num_samples": 3, "batch_size": 5, "num_steps": 4, "order": order}
    drawn = inpaint(masked, given, region, progress=seen.append, **options)
    assert drawn.shape == (4, 3, 12) and drawn.dtype == np.int64 and seen == [5, 5, 2]
    kept = np.broadcast_to(~region[:, None], drawn.shape)
    np.testing.assert_array_equal(drawn[kept], np.broadcast_to(given[:, None], drawn.shape)[kept])
    assert (drawn[1:] != given[1:, None]).any(axis=(1, 2)).all() and (drawn[2, 0] != drawn[2, 1]).any()
    other = np.where(region, 60000, given)
    np.testing.assert_array_equal(inpaint(masked, other, region, **options), drawn)


def test_holes_come_with_the_conditional_probabilities():
    """Of one hidden pixel, which the model gives directly."""
    model = tiny_masked(torch.float32, vocab_size=4, image_size=[1, 4])
    given = np.array([[0, 1, 2, 1], [2, 1, 0, 0]])
    region = np.array([False, True, False, False])
    with torch.inference_mode():
        mask = torch.from_numpy(np.tile(region, (2, 1)))
        expected = model(input_ids=torch.from_numpy(given), bool_masked_pos=mask).logits[:, 1].softmax(-1).numpy()
    drawn = inpaint(model, given, region, num_samples=3000, batch_size=3000)
    for image in range(2):
        assert_drawn_from(np.bincount(drawn[image, :, 1], minlength=3), expected[image].astype(float))


@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_of_a_region(channels):
    model = tiny_masked(torch.float32, image_size=[2, 4], num_channels=channels)
    given = random_tokens(model.config, 3).numpy()
    cells = np.array([[False, True, True, False], [True, False, False, False]])
    tokens = np.repeat(cells.ravel(), channels)
    expected = inpaint(model, given, np.tile(tokens, (3, 1)))
    assert (expected[:, 0][:, ~tokens] == given[:, ~tokens]).all() and (expected[:, 0] != given).any()
    for region in (tokens, cells, tokens.reshape(2, 4, channels), torch.from_numpy(cells)):
        np.testing.assert_array_equal(inpaint(model, given, region), expected)
    if channels == 3:
        blue = np.zeros((2, 4, 3), dtype=bool)
        blue[..., 2] = True
        drawn = inpaint(model, given, blue)[:, 0].reshape(3, 8, 3)
        np.testing.assert_array_equal(drawn[..., :2], given.reshape(3, 8, 3)[..., :2])
        assert (drawn[..., 2] != given.reshape(3, 8, 3)[..., 2]).any()


@pytest.mark.parametrize(
    ("region", "received"),
    [
        (np.ones((4, 3), dtype=bool), r"bool of shape \(4, 3\)"),
        (np.ones((2, 12), dtype=bool), r"bool of shape \(2, 12\)"),
        (np.ones((3, 4, 3), dtype=bool), r"bool of shape \(3, 4, 3\)"),
        (np.ones((3, 4), dtype=np.uint8), r"uint8 of shape \(3, 4\)"),
        (None, r"object of shape \(\)"),
    ],
)
def test_wrong_regions(either, region, received):
    given = random_tokens(either.config, 3).numpy()
    with pytest.raises(
        ValueError, match=r"`bool_masked_pos` must be a bool array of shape \(3, 12\).*got " + received
    ):
        inpaint(either, given, region)


@pytest.mark.parametrize("given", [np.zeros((2, 11), dtype=int), np.zeros(12, dtype=int), np.zeros((2, 12))])
def test_wrong_tokens(either, given):
    with pytest.raises(ValueError, match=r"`tokens` must be integers of shape \(images, 12\), got .*\(.*1.*\)"):
        complete(either, given, 1)


@pytest.mark.parametrize(
    "region",
    [
        [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1],
        [[0] * 8 + [1] * 4, [1] * 8 + [0] * 4],
    ],
)
def test_a_next_pixel_model_cannot_fill_holes(model, masked, region):
    given, region = random_tokens(model.config, 2).numpy(), np.array(region, dtype=bool)
    with pytest.raises(
        ValueError, match="can only draw what comes after the given pixels.*`rows_kept`.*`complete`.*a masked model"
    ):
        inpaint(model, given, region)
    assert inpaint(masked, given, region).shape == (2, 1, 12)


def test_a_next_pixel_model_goes_on_from_any_pixel(model):
    given = random_tokens(model.config, 2).numpy()
    for kept in (7, 12):
        drawn = inpaint(model, given, np.arange(12) >= kept, num_samples=2)
        assert (drawn[:, :, :kept] == given[:, None, :kept]).all()
        assert kept == 12 or (drawn[:, :, kept:] != given[:, None, kept:]).any()


@pytest.mark.parametrize("option", [{"num_steps": 3}, {"order": "random"}])
def test_masked_options_of_a_next_pixel_model(model, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        sample(model, 2, **option)


# Bit by bit


def streamed(model, given, region, count, seed=5, **options) -> list[tuple[np.ndarray, np.ndarray]]:
    """Everything that a stream yields for `count` drawings of one image."""
    tokens, hidden = (torch.from_numpy(part).repeat(count, 1) for part in (given, region))
    stream = stream_hidden(model, tokens, hidden, image_seeds(seed, [0] * count, range(count)), **options)
    return [(drawn.numpy().copy(), left.numpy().copy()) for drawn, left in stream]


@pytest.mark.parametrize("kept", [0, 4, 6, 11])
def test_a_stream_ends_with_what_is_drawn_at_once(either, kept):
    given = random_tokens(either.config, 1).numpy()
    region = (np.arange(12) >= kept)[None]
    options = {"temperature": 0.9, "top_k": 8}
    parts = streamed(either, given, region, 3, **options)
    np.testing.assert_array_equal(parts[-1][0], inpaint(either, given, region, num_samples=3, seed=5, **options)[0])
    assert (parts[0][1] == region).all() and not parts[-1][1].any()
    for (before, hidden), (after, still_hidden) in itertools.pairwise(parts):
        assert still_hidden.sum() < hidden.sum() and not (still_hidden & ~hidden).any()
        np.testing.assert_array_equal(after[~hidden], before[~hidden])


def test_a_stream_of_a_next_pixel_model_goes_row_by_row(model):
    given = random_tokens(model.config, 1).numpy()
    left = [hidden.sum(axis=1).tolist() for _, hidden in streamed(model, given, (np.arange(12) >= 2)[None], 2)]
    assert left == [[10, 10], [8, 8], [4, 4], [0, 0]]


def test_a_stream_of_whole_images_is_that_of_sample(either):
    empty = torch.zeros((4, 12), dtype=torch.long)
    *_, (drawn, _) = stream_hidden(either, empty, empty == 0, image_seeds(3, range(4), [0] * 4))
    np.testing.assert_array_equal(drawn.numpy(), sample(either, 4, seed=3))


def test_a_stream_of_images_with_different_prefixes(model):
    given = random_tokens(model.config, 3)
    region = torch.arange(12) >= torch.tensor([[3], [12], [0]])
    *_, (drawn, hidden) = stream_hidden(model, given, region, image_seeds(5, range(3), [0] * 3))
    np.testing.assert_array_equal(drawn.numpy(), inpaint(model, given.numpy(), region.numpy(), seed=5)[:, 0])
    assert not hidden.any()


def test_a_stream_takes_the_steps_of_a_masked_model(masked):
    given, region = random_tokens(masked.config, 1).numpy(), np.ones((1, 12), dtype=bool)
    parts = streamed(masked, given, region, 2, num_steps=3, order="confidence")
    assert len(parts) == 4
    expected = inpaint(masked, given, region, num_samples=2, seed=5, num_steps=3, order="confidence")
    np.testing.assert_array_equal(parts[-1][0], expected[0])


def test_the_model_runs_only_while_somebody_asks(either, monkeypatch):
    calls = []
    forward = type(either).forward
    monkeypatch.setattr(type(either), "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs))
    torch.manual_seed(7)
    state = torch.get_rng_state()
    empty = torch.zeros((2, 12), dtype=torch.long)
    stream = stream_hidden(either, empty, empty == 0, [1, 2])
    assert not calls
    next(stream)
    next(stream)
    asked = len(calls)
    assert asked == (4 if either.config.is_causal else 1)
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()
    stream.close()
    assert len(calls) == asked


def test_a_stream_refuses_dropout(either):
    empty = torch.zeros((1, 12), dtype=torch.long)
    either.train()
    try:
        with pytest.raises(ValueError, match="`model` must be in evaluation mode"):
            stream_hidden(either, empty, empty == 0, [1])
    finally:
        either.eval()


def test_images_are_shown_row_by_row(either):
    expected = sample(either, 5, seed=3, batch_size=2)
    seen: dict[int, list] = {number: [] for number in range(5)}

    def on_rows(numbers, tokens, hidden):
        assert tokens.shape == hidden.shape == (len(numbers), 12) and not either.training
        for number, image, left in zip(numbers.tolist(), tokens, hidden, strict=True):
            seen[number].append((image, left))

    drawn = sample(either, 5, seed=3, batch_size=2, on_rows=on_rows)
    np.testing.assert_array_equal(drawn, expected)
    for number, parts in seen.items():
        lefts = [int(left.sum()) for _, left in parts]
        assert lefts == ([12, 8, 4, 0] if either.config.is_causal else list(range(12, -1, -1)))
        assert all((image == expected[number])[~left].all() for image, left in parts)
    completions = []
    given = random_tokens(either.config, 2).numpy()
    complete(either, given, 1, num_samples=2, on_rows=lambda numbers, *_: completions.append(numbers.tolist()))
    assert completions[0] == [0, 1, 2, 3]


def test_an_exception_of_the_callback_ends_the_drawing(either):
    rows = []

    def on_rows(numbers, tokens, hidden):
        rows.append(hidden)
        if len(rows) == 2:
            raise KeyboardInterrupt

    either.train()
    with pytest.raises(KeyboardInterrupt):
        sample(either, 5, on_rows=on_rows)
    assert len(rows) == 2 and either.training
    either.eval()


@pytest.mark.parametrize(
    "windows", [{}, {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3}]
)
def test_caches_of_fixed_size_give_the_same_images(monkeypatch, windows):
    """As on a GPU, where transformers compiles what runs here as it is."""
    model = tiny_causal(torch.float32, **windows)
    given = random_tokens(model.config, 5).numpy()

    def draw() -> list[np.ndarray]:
        shown = []
        sample(model, 5, batch_size=2, on_rows=lambda numbers, tokens, hidden: shown.append(tokens))
        return [sample(model, 5, batch_size=2), complete(model, given, 1, num_samples=3, batch_size=4), *shown]

    expected, caches = draw(), []
    monkeypatch.setattr(completion_igpt, "decodes_compiled", lambda model: True)
    generate = type(model).generate

    sizes = []

    def note(*args, **kwargs):
        caches.append(kwargs.get(CACHE_NAME))
        sizes.append(len(args[1]))
        return generate(*args, **kwargs)

    monkeypatch.setattr(type(model), "generate", note)
    for images, others in zip(draw(), expected, strict=True):
        np.testing.assert_array_equal(images, others)
    assert {type(cache) for cache in caches} == {StaticCache}
    # Three batches one after the other share one, the last of them filled up.
    caches.clear()
    sample(model, 5, batch_size=2)
    assert len(caches) == 3 and len({id(cache) for cache in caches}) == 1
    caches.clear()
    sample(model, 1, use_cache=False)
    assert caches == [None]
    # Nothing is filled up where nothing is compiled.
    caches.clear()
    drawn = []
    sample(model, 5, batch_size=4, parallel_window=2, progress=drawn.append)
    assert drawn == [4, 1] and sizes[-2:] == [4, 1]


def test_as_many_images_at_once_as_there_is_memory_for(model):
    assert default_batch_size(model) == 32
    large = SimpleNamespace(config=ImageGPTConfig.from_preset("igpt-l"), device=model.device, dtype=torch.float32)
    assert default_batch_size(large) == 3
    large.config.image_size = 128
    assert default_batch_size(large) == 1
