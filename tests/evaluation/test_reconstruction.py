"""PSNR and SSIM by their definitions, and what is measured of a VQ-VAE."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from hf_igpt import IGPTImageProcessor, ImageGPTVQVAEConfig, ImageGPTVQVAEModel
from hf_igpt.data.pixels import PixelDataset
from hf_igpt.evaluation.reconstruction import reconstruction_metrics
from hf_igpt.image_quality import psnr, structural_similarity
from hf_igpt.training.vqvae_trainer import warn_of_collapse


def random_images(count: int, side: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), np.uint8))


def ssim_by_loops(first: np.ndarray, second: np.ndarray) -> float:
    """Of one channel, window after window, as Wang et al. write it."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2, found = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for row in range(first.shape[0] - 10):
        for column in range(first.shape[1] - 10):
            x, y = (image[row : row + 11, column : column + 11].astype(float) for image in (first, second))
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            variance_x, variance_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
            covariance = (window * (x - mean_x) * (y - mean_y)).sum()
            similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
            found.append(similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)))
    return float(np.mean(found))


def test_structural_similarity_is_that_of_the_formula():
    first, second = random_images(2, 14), random_images(2, 14, seed=1)
    second[1] = (first[1].int() + second[1].int() // 4).clamp(0, 255)
    found = structural_similarity(first, second)
    expected = [
        np.mean([ssim_by_loops(a[..., channel].numpy(), b[..., channel].numpy()) for channel in range(3)])
        for a, b in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    assert found[0] < 0.1 < 0.5 < found[1] < 1
    assert structural_similarity(first, first).tolist() == pytest.approx([1, 1])
    # Of two plain images only the means count: black and white.
    black, white = torch.zeros(1, 11, 11, 1), torch.full((1, 11, 11, 1), 255.0)
    assert structural_similarity(black, white).item() == pytest.approx(1e-4 / (1 + 1e-4))
    with pytest.raises(ValueError, match="both sides at least 11 pixels, got"):
        structural_similarity(random_images(1, 10), random_images(1, 10))
    with pytest.raises(ValueError, match="one shape"):
        structural_similarity(first, second[:1])


def test_signal_to_noise():
    assert psnr(255**2) == 0 and psnr(255**2 / 1000) == pytest.approx(30) and psnr(0) == math.inf


@pytest.mark.parametrize("side", [8, 12])
def test_what_is_measured_of_a_model(side):
    pixels = random_images(7, side)
    rows = Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in pixels.numpy()]}, features=Features({"image": ImageFeature()})
    )
    images = PixelDataset(rows, IGPTImageProcessor(size=side))
    torch.manual_seed(0)
    model = ImageGPTVQVAEModel(ImageGPTVQVAEConfig(codebook_size=30, code_size=4, hidden_size=8, residual_size=4))
    found = reconstruction_metrics(model.train(), images, batch_size=3)
    assert model.training and not model.quantizer._collected
    codes = model.encode(pixels)
    made = model.decode(codes)
    error = (made.double() - pixels.double()).square().mean().item()
    assert found["psnr_db"] == pytest.approx(psnr(error)) and 0 < found["psnr_db"] < 15
    expected = structural_similarity(made, pixels).mean().item() if side == 12 else None
    assert found["ssim"] == (expected if expected is None else pytest.approx(expected))
    counts = torch.bincount(codes.flatten(), minlength=30).double()
    shares = counts[counts > 0] / counts.sum()
    assert (found["codes_used"], found["num_images"]) == (int((counts > 0).sum()), 7)
    assert found["possible_codes"] == min(30, codes.numel())
    assert found["perplexity"] == pytest.approx(math.exp(-(shares * shares.log()).sum()))
    with torch.no_grad():
        loss = model.eval()(pixels.permute(0, 3, 1, 2) / 127.5 - 1).loss.item()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)


def test_a_collapsed_codebook_is_said_with_what_to_do(caplog):
    warn_of_collapse({"codes_used": 10, "possible_codes": 100})
    assert not caplog.records
    warn_of_collapse({"codes_used": 9, "possible_codes": 100})
    assert "collapsed: 9 of 100 codes are used" in caplog.text and "`--revival_threshold`" in caplog.text
