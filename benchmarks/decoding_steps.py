"""Samples of a masked model against the number of decoding steps, for both orders.

    python benchmarks/decoding_steps.py --model outputs/digits-masked/model --judge outputs/digits/model \
        --tokens outputs/digits/tokens --output decoding-steps.json

Two figures for each setting, over the same number of images:

- the Frechet distance between the samples' pixels and those of the held-out images (validation and test): means and
  covariances as in FID, on the pixels themselves, so it is comparable within this table only. Lower is better.
- nats per token under a next-pixel model with the same palette, the judge. Best is what the held-out images have:
  a higher figure is noise, a lower one means that the samples are too alike or too plain.

Rows for comparison: the judge's own samples, and the training images.
"""

import argparse
import time

import numpy as np

from hf_igpt.commands.checkpoints import load_checkpoint, load_matching_tokens
from hf_igpt.data.token_store import token_rows
from hf_igpt.evaluation import log_likelihood
from hf_igpt.generation import sample
from hf_igpt.results import write_results


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Between Gaussians with the means and covariances of two sets of vectors (count, size)."""
    covariances = [np.cov(vectors, rowvar=False) for vectors in (first, second)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(min=0)).sum()
    offset = first.mean(axis=0) - second.mean(axis=0)
    distance = offset @ offset + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross
    return max(0.0, float(distance))  # rounding can leave it a little below


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True, help="masked checkpoint")
    options.add_argument("--judge", required=True, help="next-pixel checkpoint with the same palette")
    options.add_argument("--tokens", required=True, help="tokenized images of that palette")
    options.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    options.add_argument("--images", type=int, default=512, help="samples of each setting (default 512)")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--output", help="results JSON to write")
    arguments = options.parse_args()
    model, processor, _ = load_checkpoint(arguments.model)
    judge, _, _ = load_checkpoint(arguments.judge)
    tokens = load_matching_tokens(arguments.tokens, model, processor)
    load_matching_tokens(arguments.tokens, judge, processor)
    held_out = np.concatenate([token_rows(tokens[name]) for name in ("validation", "test")])

    def pixels(images: np.ndarray) -> np.ndarray:
        return processor.palette[images].reshape(len(images), -1) / 255

    def figures(images: np.ndarray, seconds: float | None = None) -> dict[str, float | None]:
        return {
            "frechet_distance": frechet_distance(pixels(images), pixels(held_out)),
            "judge_nats_per_token": log_likelihood(judge, images, 128).nats_per_token,
            "seconds_per_image": None if seconds is None else seconds / len(images),
        }

    rows = {"held-out images": figures(held_out), "training images": figures(token_rows(tokens["train"]))}

    def draw(name: str, drawer, **settings) -> None:
        started = time.perf_counter()
        images = sample(drawer, arguments.images, batch_size=128, seed=arguments.seed, **settings)
        rows[name] = figures(images, time.perf_counter() - started)

    draw("next-pixel model", judge)
    for order in ("random", "confidence"):
        for steps in arguments.steps:
            draw(f"masked, {order}, {steps} step{'s' * (steps > 1)}", model, num_steps=steps, order=order)
    for name, row in rows.items():
        seconds = "" if row["seconds_per_image"] is None else f"{1000 * row['seconds_per_image']:8.1f} ms an image"
        print(f"{name:32}{row['frechet_distance']:9.3f}{row['judge_nats_per_token']:9.3f}{seconds}")
    if arguments.output:
        seeds, settings = {"seed": arguments.seed}, vars(arguments)
        write_results(arguments.output, metrics={"rows": rows}, seeds=seeds, arguments=settings)


if __name__ == "__main__":
    main()
