"""Iterative decoding draws from the model, in every order, and touches nothing that is given."""

import itertools
import math

import numpy as np
import pytest
import torch
from tiny_models import random_tokens, tiny_causal, tiny_masked

from hf_igpt.generation_igpt import _gumbel, iterative_decode


@pytest.fixture(scope="module")
def model():
    return tiny_masked(torch.float32)


def random_mask(tokens: torch.Tensor, share: float = 0.5, seed: int = 2) -> torch.BoolTensor:
    return torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)) < share


def counted_calls(model, monkeypatch) -> list[torch.Tensor]:
    """The masks of every pass of the model from now on."""
    masks, forward = [], model.forward

    def recorded(*args, bool_masked_pos, **kwargs):
        masks.append(bool_masked_pos.clone())
        return forward(*args, bool_masked_pos=bool_masked_pos, **kwargs)

    monkeypatch.setattr(model, "forward", recorded)
    return masks


def mixture(model, given: dict[int, int]) -> np.ndarray:
    """
    Probability of every image with the given pixels, of shape (V,) * T: the mean over all orders of the hidden pixels
    of the product of their conditional probabilities, by the model's own logits.
    """
    values, length = model.config.num_values, model.config.n_positions
    images = torch.tensor(list(itertools.product(range(values), repeat=length)))
    hidden = [position for position in range(length) if position not in given]
    conditional = {}
    for size in range(1, len(hidden) + 1):
        for masked in itertools.combinations(hidden, size):
            mask = torch.zeros_like(images, dtype=torch.bool)
            mask[:, list(masked)] = True
            with torch.inference_mode():
                logits = model(input_ids=images, bool_masked_pos=mask).logits.double()
            conditional[masked] = logits.log_softmax(-1).gather(-1, images[..., None]).squeeze(-1)
    total = torch.zeros(len(images), dtype=torch.float64)
    orders = list(itertools.permutations(hidden))
    for order in orders:
        steps = (conditional[tuple(sorted(order[step:]))][:, position] for step, position in enumerate(order))
        total += sum(steps).exp() / len(orders)
    for position, value in given.items():
        total[images[:, position] != value] = 0
    return total.numpy().reshape((values,) * length)


def is_drawn_from(images: torch.Tensor, expected: np.ndarray) -> bool:
    """Chi-square, at most four standard deviations above its mean."""
    counts = np.zeros_like(expected)
    np.add.at(counts, tuple(images.numpy().T), 1)
    assert expected.sum() == pytest.approx(1) and counts[expected == 0].sum() == 0
    counts, expected = counts[expected > 0], expected[expected > 0] * len(images)
    assert expected.min() > 3
    freedom = len(counts) - 1
    return ((counts - expected) ** 2 / expected).sum() < freedom + 4 * (2 * freedom) ** 0.5


@pytest.fixture(scope="module")
def enumerable():
    return tiny_masked(torch.float32, vocab_size=4, image_size=[2, 2])


def test_images_come_with_the_probabilities_of_the_mixture_over_orders(enumerable):
    expected = mixture(enumerable, {})
    assert expected.max() > 10 * expected.min()
    generator = torch.Generator().manual_seed(0)
    images = enumerable.generate(num_return_sequences=20000, generator=generator)
    assert images.shape == (20000, 4) and images.dtype == torch.int64
    assert is_drawn_from(images, expected)
    # The test can tell: all pixels at once, one after another by confidence, and another temperature are not it.
    for other in ({"num_steps": 1}, {"order": "confidence"}, {"temperature": 0.8}):
        images = enumerable.generate(num_return_sequences=20000, generator=generator, **other)
        assert not is_drawn_from(images, expected)


def test_holes_come_with_the_conditional_probabilities(enumerable):
    """Orders of the hidden pixels only: the given one is there from the beginning."""
    generator = torch.Generator().manual_seed(0)
    given, mask = torch.tensor([[0, 0, 2, 0]]), torch.tensor([[True, True, False, True]])
    images = enumerable.generate(given, mask, num_return_sequences=10000, generator=generator)
    assert is_drawn_from(images, mixture(enumerable, {2: 2}))
    # It differs from the joint mixture, cut down to that pixel's value.
    joint = mixture(enumerable, {})
    joint[:, :, :2] = 0
    assert not is_drawn_from(images, joint / joint.sum())


def test_pixels_drawn_at_once_are_independent(enumerable):
    with torch.inference_mode():
        hidden = torch.ones(1, 4, dtype=torch.bool)
        logits = enumerable(input_ids=torch.zeros(1, 4, dtype=torch.long), bool_masked_pos=hidden).logits[0]
    first, second, third, fourth = logits.double().softmax(-1).numpy()
    expected = np.einsum("a,b,c,d->abcd", first, second, third, fourth)
    generator = torch.Generator().manual_seed(0)
    images = enumerable.generate(num_return_sequences=10000, num_steps=1, generator=generator)
    assert is_drawn_from(images, expected)


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("num_steps", [None, 1, 3, 100])
def test_given_pixels_stay_and_hidden_ones_are_drawn(model, order, schedule, num_steps):
    tokens = random_tokens(model.config, 5)
    mask = random_mask(tokens)
    before = tokens.clone(), mask.clone()
    drawn = iterative_decode(model, tokens, mask, num_steps, order, schedule)
    assert torch.equal(tokens, before[0]) and torch.equal(mask, before[1])
    assert torch.equal(drawn[~mask], tokens[~mask]) and (drawn[mask] != tokens[mask]).any()
    assert drawn.min() >= 0 and drawn.max() < model.config.num_values
    assert not torch.equal(drawn, iterative_decode(model, tokens, mask, num_steps, order, schedule))


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_what_is_hidden_is_not_read(model, order):
    tokens = random_tokens(model.config, 4)
    mask = random_mask(tokens)
    drawn = [
        iterative_decode(model, content, mask, 3, order, generator=torch.Generator().manual_seed(5))
        for content in (
            tokens,
            tokens.masked_fill(mask, 9),
            tokens.masked_fill(mask, model.config.start_token_id),
            tokens.masked_fill(mask, -100),
        )
    ]
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])
    other = iterative_decode(
        model, tokens.masked_fill(~mask, 9), mask, 3, order, generator=torch.Generator().manual_seed(5)
    )
    assert not torch.equal(drawn[0][mask], other[mask])


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize(("hidden", "num_steps"), [(12, None), (12, 5), (12, 1), (5, 12), (5, 100), (1, 3), (0, 3)])
def test_passes_of_the_model(model, monkeypatch, order, schedule, hidden, num_steps):
    tokens = random_tokens(model.config, 2)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, 12 - hidden :] = True
    masks = counted_calls(model, monkeypatch)
    drawn = iterative_decode(model, tokens, mask, num_steps, order, schedule)
    assert len(masks) == (hidden if num_steps is None else min(hidden, num_steps))
    left = [seen.sum(dim=1) for seen in [*masks, torch.zeros_like(mask)]]
    # Each step reveals the same number in both images, at least one; with a step for every pixel exactly one.
    revealed = torch.stack([before - after for before, after in itertools.pairwise(left)]) if masks else torch.ones(1)
    assert (revealed >= 1).all() and (len(masks) != hidden or (revealed == 1).all())
    assert all((later & ~earlier).sum() == 0 for earlier, later in itertools.pairwise(masks))
    if hidden == 0:
        assert torch.equal(drawn, tokens)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [12 - 3 * step for step in range(4)]),
        ("cosine", [math.floor(12 * math.cos(math.pi / 2 * step / 4)) for step in range(4)]),
    ],
)
def test_the_schedule_says_how_many_stay_hidden(model, monkeypatch, schedule, expected):
    masks = counted_calls(model, monkeypatch)
    model.generate(num_steps=4, schedule=schedule)
    assert [int(mask.sum()) for mask in masks] == expected
    assert expected == {"linear": [12, 9, 6, 3], "cosine": [12, 11, 8, 4]}[schedule]


@pytest.mark.parametrize("num_steps", [None, 4])
@pytest.mark.parametrize("order", ["random", "confidence"])
def test_images_with_different_numbers_of_hidden_pixels(model, monkeypatch, num_steps, order):
    tokens = random_tokens(model.config, 5)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    numbers = [0, 1, 3, 7, 12]
    for image, number in enumerate(numbers):
        mask[image, torch.randperm(12)[:number]] = True
    masks = counted_calls(model, monkeypatch)
    drawn = iterative_decode(model, tokens, mask, num_steps, order)
    assert torch.equal(drawn[~mask], tokens[~mask])
    assert len(masks) == (num_steps or 12)
    for image, number in enumerate(numbers):
        steps = sum(bool(seen[image].any()) for seen in masks)
        assert steps == (number if num_steps is None else min(number, num_steps))


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("cold", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-5}])
def test_the_likeliest_values(model, monkeypatch, order, cold):
    """Every value that is revealed is the likeliest given what was known in that step."""
    masks = counted_calls(model, monkeypatch)
    hidden = torch.ones(3, 12, dtype=torch.bool)
    drawn = iterative_decode(model, random_tokens(model.config, 3), hidden, 4, order, **cold)
    monkeypatch.undo()
    for mask, after in zip(masks, [*masks[1:], ~hidden], strict=True):
        with torch.inference_mode():
            likeliest = model(input_ids=drawn, bool_masked_pos=mask).logits.argmax(-1)
        revealed = mask & ~after
        assert revealed.any() and torch.equal(drawn[revealed], likeliest[revealed])


def test_truncation(model):
    """Of the first step's values; later ones depend on them."""
    hidden = torch.ones(1, 12, dtype=torch.bool)
    with torch.inference_mode():
        logits = model(input_ids=torch.zeros(1, 12, dtype=torch.long), bool_masked_pos=hidden).logits[0]
    best = logits.topk(3).indices
    drawn = model.generate(num_return_sequences=500, num_steps=1, top_k=3)
    for position in range(12):
        assert set(drawn[:, position].tolist()) == set(best[position].tolist())
    ordered, indices = logits.softmax(-1).sort(descending=True)
    nucleus = ordered.cumsum(-1) - ordered < 0.5
    drawn = model.generate(num_return_sequences=500, num_steps=1, top_p=0.5)
    for position in range(12):
        assert set(drawn[:, position].tolist()) == set(indices[position][nucleus[position]].tolist())


def test_confidence_reveals_the_most_probable_first(model, monkeypatch):
    """Without noise; also where only one value is left to draw, by what the model gave it."""
    masks = counted_calls(model, monkeypatch)
    hidden = torch.ones(1, 12, dtype=torch.bool)
    drawn = model.generate(order="confidence", choice_temperature=0, top_k=1)
    monkeypatch.undo()
    for mask, after in itertools.pairwise(masks):
        with torch.inference_mode():
            surest = model(input_ids=drawn, bool_masked_pos=mask).logits.log_softmax(-1).amax(-1)
        assert (mask & ~after).nonzero().tolist() == [[0, int(surest.masked_fill(~mask, -math.inf).argmax())]]
    assert len(masks) == 12 and torch.equal(masks[0], hidden)


@pytest.mark.parametrize(("options", "scale"), [({}, 4.5), ({"choice_temperature": 2.0}, 2.0)])
def test_noise_of_the_confidence_falls_to_zero(model, monkeypatch, options, scale):
    """Over the steps that an image takes, which are fewer where fewer pixels are hidden."""
    tokens = random_tokens(model.config, 2)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, 3:] = False
    noise, seen = torch.randn(4, 2, 12), []

    def recorded(log_probability, generator):
        seen.append(log_probability)
        return noise[len(seen) - 1]

    monkeypatch.setattr("hf_igpt.generation_igpt._gumbel", recorded)
    masks = counted_calls(model, monkeypatch)
    iterative_decode(model, tokens, mask, 4, "confidence", **options)
    masks.append(torch.zeros_like(mask))
    for image, steps in enumerate((4, 3)):
        for step in range(steps):
            before, after = masks[step][image], masks[step + 1][image]
            confidence = seen[step][image] + scale * (1 - (step + 1) / steps) * noise[step][image]
            assert confidence[before & ~after].min() > confidence[after].max() if after.any() else True
    assert not masks[3][1].any() and masks[3][0].any()


def test_the_noise_is_gumbel_noise():
    noise = _gumbel(torch.empty(100, 100), torch.Generator().manual_seed(0))
    assert noise.mean() == pytest.approx(0.5772, abs=0.05) and noise.var() == pytest.approx(math.pi**2 / 6, rel=0.05)


def test_generators(model):
    tokens = random_tokens(model.config, 3)
    mask = random_mask(tokens)
    state = torch.get_rng_state()
    for order in ("random", "confidence"):
        first, again, other = (
            iterative_decode(model, tokens, mask, order=order, generator=torch.Generator().manual_seed(seed))
            for seed in (3, 3, 4)
        )
        assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_next_to_each_other(model):
    tokens = random_tokens(model.config, 2)
    mask = random_mask(tokens)
    drawn = model.generate(tokens, mask, num_return_sequences=3)
    for row, image in enumerate((0, 0, 0, 1, 1, 1)):
        assert torch.equal(drawn[row][~mask[image]], tokens[image][~mask[image]])
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_half_precision_and_int32():
    model = tiny_masked(torch.float32).to(torch.bfloat16)
    tokens = random_tokens(model.config, 2).int()
    mask = random_mask(tokens)
    for order in ("random", "confidence"):
        drawn = iterative_decode(model, tokens, mask, order=order)
        assert drawn.dtype == torch.int64 and torch.equal(drawn[~mask], tokens[~mask].long())


def test_no_gradients(model):
    assert not model.generate().requires_grad


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_generators_of_each_image(model, order):
    """Beside images with more and with fewer hidden pixels."""
    tokens = random_tokens(model.config, 3)
    mask = random_mask(tokens)
    mask[0], mask[2] = True, False
    mask[2, 5] = True

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    state = torch.get_rng_state()
    drawn = iterative_decode(model, tokens, mask, order=order, generator=generators(3, 4, 5))
    assert torch.equal(torch.get_rng_state(), state)
    for image, seed in enumerate((3, 4, 5)):
        row = slice(image, image + 1)
        alone = iterative_decode(model, tokens[row], mask[row], order=order, generator=generators(seed))
        assert torch.equal(alone[0], drawn[image])
    other = iterative_decode(model, tokens, mask, order=order, generator=generators(3, 6, 5))
    assert torch.equal(other[[0, 2]], drawn[[0, 2]]) and not torch.equal(other[1], drawn[1])
    with pytest.raises(ValueError, match="one for each of the 3 images to be drawn, got 2"):
        iterative_decode(model, tokens, mask, generator=generators(3, 4))


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_damaged_logits(kind):
    model = tiny_masked(torch.float32)
    with torch.no_grad():
        model.lm_head.weight[7] = float(kind)
    with pytest.raises(ValueError, match="logits are not finite"):
        model.generate()


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"temperature": "hot"}, "`temperature` must be above 0 and finite.*got 'hot'"),
        ({"num_steps": 0}, "`num_steps` must be None or a whole number of at least 1, got 0"),
        ({"num_steps": 2.0}, "`num_steps` must be None or a whole number"),
        ({"order": "raster"}, "`order` must be one of random, confidence, got 'raster'"),
        ({"schedule": "square"}, "`schedule` must be one of cosine, linear, got 'square'"),
        ({"temperature": 0}, "`temperature` must be above 0 and finite.*got 0"),
        ({"temperature": float("nan")}, "`temperature` must be above 0"),
        ({"top_k": -1}, "`top_k` must be a whole number of at least 0.*got -1"),
        ({"top_p": 0.0}, "`top_p` must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "`top_p` must be above 0 and at most 1, got 1.1"),
        ({"choice_temperature": 1.0}, '`choice_temperature` has no effect with order="random"'),
        ({"order": "confidence", "choice_temperature": -1.0}, "`choice_temperature` must be at least 0.*got -1.0"),
        ({"num_return_sequences": 0}, "`num_return_sequences` must be at least 1, got 0"),
        ({"input_ids": torch.zeros(1, 12, dtype=torch.long)}, "belong together"),
        ({"bool_masked_pos": torch.ones(1, 12, dtype=torch.bool)}, "belong together"),
    ],
)
def test_wrong_options(model, options, pattern):
    with pytest.raises(ValueError, match=pattern):
        model.generate(**options)


@pytest.mark.parametrize(
    ("mask", "pattern"),
    [
        (torch.ones(2, 11, dtype=torch.bool), r"shape \[2, 12\].*got torch.bool of shape \[2, 11\]"),
        (torch.ones(12, dtype=torch.bool), r"got torch.bool of shape \[12\]"),
        (torch.ones(2, 12), "got torch.float32"),
        (np.ones((2, 12), dtype=bool), "got .*ndarray"),
    ],
)
def test_wrong_masks(model, mask, pattern):
    tokens = random_tokens(model.config)
    for call in (iterative_decode, type(model).generate):
        with pytest.raises(ValueError, match=pattern):
            call(model, tokens, mask)


def test_wrong_tokens(model):
    tokens = random_tokens(model.config)
    tokens[1, 3] = 10
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    with pytest.raises(ValueError, match="got 10 at position 3 of image 1"):
        model.generate(tokens, mask)
    mask[1, 3] = True
    model.generate(tokens, mask)


def test_a_next_pixel_model_is_refused():
    model = tiny_causal(torch.float32)
    tokens = random_tokens(model.config)
    with pytest.raises(ValueError, match="`bool_masked_pos` is for masked models"):
        iterative_decode(model, tokens, torch.ones_like(tokens, dtype=torch.bool))
