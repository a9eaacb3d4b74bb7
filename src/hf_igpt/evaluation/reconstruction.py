"""What a VQ-VAE makes of images: their error, and how it uses its codes."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_igpt.image_quality import WINDOW, psnr, structural_similarity


if TYPE_CHECKING:
    from hf_igpt.data.pixels import PixelDataset
    from hf_igpt.modeling_igpt_vqvae import ImageGPTVQVAEModel


def reconstruction_metrics(
    model: "ImageGPTVQVAEModel", images: "PixelDataset", batch_size: int = 64
) -> dict[str, int | float | None]:
    """
    Scores a model on all images. Several processes must call it together: each reads a share, all get the same.

    Returns:
        - loss: that of training;
        - psnr_db: over all pixels and channels, as that of a palette, between the images and what `decode` gives back;
          None where all come back exactly;
        - ssim: mean over images; None for images smaller than its window;
        - codes_used: codes that some image has, and possible_codes, the most that so many images could have;
        - perplexity: the number of codes that, used equally often, would have the same entropy;
        - num_images.
    """
    from hf_igpt.processes import process_state

    state = process_state()
    model_mode, height, width = model.training, *images.image_size
    has_ssim = min(height, width) >= WINDOW
    sums = torch.zeros(3, dtype=torch.float64)
    counts = torch.zeros(model.config.codebook_size, dtype=torch.int64)
    model.eval()
    try:
        for rows in np.array_split(np.arange(len(images)), -(-len(images) // batch_size))[
            state.process_index :: state.num_processes
        ]:
            loss, squared, similarity, codes = _scores(model, images, rows, has_ssim)
            sums += torch.tensor([loss, squared, similarity], dtype=torch.float64)
            counts += torch.bincount(codes, minlength=len(counts))
    finally:
        model.train(model_mode)
    if state.num_processes > 1:
        sums, counts = _over_processes(sums, state.device), _over_processes(counts, state.device)
    loss, squared, similarity = sums.tolist()
    error = squared / (len(images) * height * width * 3)
    shares = counts[counts > 0].double() / counts.sum()
    return {
        "loss": loss / len(images),
        "psnr_db": psnr(error) if error > 0 else None,
        "ssim": similarity / len(images) if has_ssim else None,
        "codes_used": int((counts > 0).sum()),
        "possible_codes": min(len(counts), int(counts.sum())),
        "perplexity": float(torch.exp(-(shares * shares.log()).sum())),
        "num_images": len(images),
    }


@torch.no_grad()
def _scores(
    model: "ImageGPTVQVAEModel", images: "PixelDataset", rows: np.ndarray, has_ssim: bool
) -> tuple[float, float, float, torch.Tensor]:
    """Sums over a batch of its loss, squared errors in levels and SSIM, and its codes."""
    from hf_igpt.data.pixels import PixelCollator

    examples = images.__getitems__(rows)
    outputs = model(PixelCollator()(examples)["pixel_values"].to(model.device))
    originals = torch.from_numpy(np.stack([example["pixels"] for example in examples])).to(model.device)
    made = model.levels(outputs.reconstruction)
    squared = (made.double() - originals.double()).square().sum().item()
    similarity = structural_similarity(made, originals).sum().item() if has_ssim else 0.0
    return outputs.loss.item() * len(rows), squared, similarity, outputs.codes.flatten().cpu()


def _over_processes(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    values = values.to(device)
    torch.distributed.all_reduce(values)
    return values.cpu()
