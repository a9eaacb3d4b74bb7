import math
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_models import random_tokens, tiny_causal

from hf_igpt import IGPTImageProcessor
from hf_igpt.data.palette_fitting import count_colors
from hf_igpt.evaluation import EmpiricalColors, cell_sizes, log_likelihood, uniform_color_nats
from hf_igpt.evaluation.color_density import FIXED_SMOOTHING, SMOOTHINGS, ColorCost, color_cost
from hf_igpt.palette_igpt import PaletteLookup


# Unrounded colours, one pair of equal ones, and two whose boundary passes through lattice points.
PALETTE = np.array([[10, 20, 30], [200.5, 100.25, 3], [10, 20, 30], [128, 128, 128], [130, 128, 128], [250, 255, 240]])


@pytest.fixture(scope="module")
def lattice_tokens() -> np.ndarray:
    """The token of every colour, by brute force in float64: uint8 of shape (256, 256, 256), red first."""
    green, blue = np.indices((256, 256), dtype=np.float64)
    tokens = np.empty((256, 256, 256), dtype=np.uint8)
    for red in range(256):
        distances = [(r - red) ** 2 + (g - green) ** 2 + (b - blue) ** 2 for r, g, b in PALETTE]
        tokens[red] = np.argmin(distances, axis=0)
    return tokens


def lattice(red: int) -> np.ndarray:
    """All colours with this much red."""
    pixels = np.empty((256, 256, 3), dtype=np.uint8)
    pixels[..., 0] = red
    pixels[..., 1], pixels[..., 2] = np.indices((256, 256))
    return pixels


def some_pixels(seed: int, count: int = 3000) -> np.ndarray:
    """Few colours, many times: what counts differ from a uniform density for."""
    random = np.random.default_rng(seed)
    colors = np.random.default_rng(0).integers(0, 256, (40, 3), dtype=np.uint8)
    return colors[np.minimum(random.geometric(0.1, count) - 1, 39)]


def test_cells_are_those_of_brute_force(lattice_tokens):
    sizes = cell_sizes(PALETTE)
    np.testing.assert_array_equal(sizes, np.bincount(lattice_tokens.ravel(), minlength=6))
    # Ties go to the lowest index: of equal colours to the first, and a plane between two of them to one.
    assert sizes[2] == 0 and sizes.sum() == 256**3
    assert cell_sizes(PALETTE.tolist()) is sizes and not sizes.flags["W"]


def test_the_uniform_density_sums_to_one_over_each_cell(lattice_tokens):
    tokens = np.array([0, 1, 3, 4, 5])
    nats = np.zeros(6)
    nats[tokens] = uniform_color_nats(PALETTE, tokens)
    of_cells = np.bincount(lattice_tokens.ravel(), weights=np.exp(-nats)[lattice_tokens].ravel(), minlength=6)
    np.testing.assert_allclose(of_cells, [1, 1, 0, 1, 1, 1], rtol=1e-9)


@pytest.mark.parametrize("smoothing", [1e-3, 1.0])
def test_the_empirical_density_sums_to_one_over_each_cell_and_over_all_colours(lattice_tokens, smoothing):
    train = some_pixels(1)
    density = EmpiricalColors(PALETTE, count_colors([train]), smoothing)
    of_cells = np.zeros(6)
    for red in range(256):
        probability = np.exp(-density.nats(lattice(red)))
        assert probability.min() > 0
        of_cells += np.bincount(lattice_tokens[red].ravel(), weights=probability.ravel(), minlength=6)
    np.testing.assert_allclose(of_cells, [1, 1, 0, 1, 1, 1], rtol=1e-9)
    # Any model of tokens then is a density over colours, and no improper one.
    of_tokens = np.random.default_rng(2).dirichlet(np.ones(5))
    assert of_tokens @ of_cells[of_cells > 0] == pytest.approx(1, rel=1e-9)


def test_the_empirical_density_by_hand():
    pixels = np.array([[10, 20, 30], [10, 20, 30], [11, 20, 30], [250, 250, 250]], dtype=np.uint8)
    density = EmpiricalColors(PALETTE, count_colors([pixels]), 0.5)
    sizes = cell_sizes(PALETTE)
    seen, unseen, elsewhere = density.nats(np.array([[10, 20, 30], [12, 20, 30], [128, 128, 128]], dtype=np.uint8))
    assert seen == pytest.approx(-math.log(2.5 / (3 + 0.5 * sizes[0])), rel=1e-12)
    assert unseen == pytest.approx(-math.log(0.5 / (3 + 0.5 * sizes[0])), rel=1e-12)
    # Nothing was counted in this cell: uniform.
    assert elsewhere == pytest.approx(math.log(sizes[3]), rel=1e-12)


def test_much_smoothing_is_the_uniform_density():
    pixels = some_pixels(3)
    counts = count_colors([some_pixels(1)])
    uniform = uniform_color_nats(PALETTE, PaletteLookup(PALETTE).quantize(pixels))
    np.testing.assert_allclose(EmpiricalColors(PALETTE, counts, 1e9).nats(pixels), uniform, rtol=1e-4)
    assert EmpiricalColors(PALETTE, counts, 0.1).nats(pixels).mean() < uniform.mean() - 1


def test_validation_chooses_the_smoothing():
    train, validation = (
        [some_pixels(1)],
        [some_pixels(4), np.random.default_rng(5).integers(0, 256, (600, 3), np.uint8)],
    )
    density = EmpiricalColors.fit(PALETTE, train, validation)
    held_out = np.concatenate(validation)
    costs = {a: EmpiricalColors(PALETTE, count_colors(train), a).nats(held_out).sum() for a in SMOOTHINGS}
    best = min(costs, key=costs.get)
    assert density.smoothing == best and costs[best] < min(costs[SMOOTHINGS[0]], costs[SMOOTHINGS[-1]])
    assert density.nats(held_out).sum() == pytest.approx(costs[best], rel=1e-12)
    assert EmpiricalColors.fit(PALETTE, train).smoothing == FIXED_SMOOTHING
    assert EmpiricalColors.fit(PALETTE, train, smoothing=0.7).smoothing == 0.7


@pytest.mark.parametrize("smoothing", [0, -1, math.nan, math.inf])
def test_a_smoothing_that_is_none_is_refused(smoothing):
    with pytest.raises(ValueError, match="`smoothing` must be a finite number above 0"):
        EmpiricalColors(PALETTE, np.zeros(1 << 24, dtype=np.int64), smoothing)


def test_counts_of_other_things_are_refused():
    with pytest.raises(ValueError, match=r"`counts` must be 256\^3 whole numbers"):
        EmpiricalColors(PALETTE, np.zeros(100, dtype=np.int64))


def test_tokens_that_no_colour_has_are_refused():
    with pytest.raises(ValueError, match="Token 2 is nearest to none of the 256"):
        uniform_color_nats(PALETTE, np.array([[0, 2]]))
    with pytest.raises(ValueError, match="must lie in 0 to 5, the palette's colours, got 0 to 6"):
        uniform_color_nats(PALETTE, np.array([[0, 6]]))


def test_bits_per_dim_of_a_model_are_those_of_tokens_and_colours():
    model = tiny_causal(vocab_size=7)
    tokens = random_tokens(model.config, 4).numpy()
    tokens[tokens == 2] = 0
    height, width = model.config.grid
    processor = IGPTImageProcessor(size={"height": height, "width": width}, palette=PALETTE)
    likelihood = log_likelihood(model, tokens, processor=processor)
    assert log_likelihood(model, tokens).bits_per_dim is None
    per_image = likelihood.nats_per_image + np.log(cell_sizes(PALETTE)[tokens]).sum(axis=1)
    bits = per_image / (3 * height * width * math.log(2))
    assert likelihood.bits_per_dim == pytest.approx(bits.mean(), rel=1e-12)
    metrics = likelihood.metrics()
    assert metrics["bits_per_dim_standard_error"] == pytest.approx(bits.std(ddof=1) / 2, rel=1e-12)
    of_tokens = likelihood.nats_per_token / 3 / math.log(2)
    assert metrics["bits_per_dim_of_colors"] == pytest.approx(likelihood.bits_per_dim - of_tokens, rel=1e-12)
    assert metrics["color_density"] == "uniform" and "color_smoothing" not in metrics

    empirical = likelihood.with_colors(ColorCost("empirical", np.zeros(4), None, 0.3, "given"))
    assert empirical.bits_per_dim == pytest.approx(of_tokens, rel=1e-12)
    assert empirical.metrics()["color_smoothing"] == 0.3 and empirical.metrics()["color_smoothing_from"] == "given"
    with pytest.raises(ValueError, match="of the 4 images that were scored"):
        likelihood.with_colors(ColorCost("uniform", np.zeros(3)))


def test_rgb_tokens_have_exact_bits_per_dim_and_codes_have_none():
    model = tiny_causal(image_size=[2, 3], num_channels=3)
    tokens = random_tokens(model.config, 3).numpy()
    likelihood = log_likelihood(
        model, tokens, processor=IGPTImageProcessor({"height": 2, "width": 3}, token_kind="rgb")
    )
    assert likelihood.bits_per_dim == pytest.approx(likelihood.nats_per_token / math.log(2), rel=1e-12)
    metrics = likelihood.metrics()
    assert metrics["color_density"] == "exact" and metrics["bits_per_dim_of_colors"] == 0
    codes = likelihood.with_colors(color_cost(SimpleNamespace(token_kind="vqvae", palette=None), tokens))
    assert codes.bits_per_dim is None
    assert codes.metrics()["bits_per_dim"] is None and "undefined" in codes.metrics()["bits_per_dim_reason"]
