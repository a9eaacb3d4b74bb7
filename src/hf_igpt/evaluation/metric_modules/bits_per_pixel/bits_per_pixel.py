"""Bits per pixel of images, for the library `evaluate`."""

import math

import datasets
import evaluate

from hf_igpt.evaluation.metrics import total, whole_numbers


class BitsPerPixel(evaluate.Metric):
    """
    Negative log-likelihood in bits, divided by the number of pixels; both summed over images. Not bits/dim of the RGB
    image: a palette or a VQ-VAE has lost some.
    """

    def _info(self) -> evaluate.MetricInfo:
        # `pixels` as a float: as an integer feature, half a pixel would be cut to a whole number in silence.
        features = datasets.Features({"nats": datasets.Value("float64"), "pixels": datasets.Value("float64")})
        return evaluate.MetricInfo(
            description=self.__class__.__doc__,
            citation="",
            inputs_description="nats: sum over the tokens of one image; pixels: height x width of the image.",
            features=features,
        )

    # `evaluate.combine` hands the inputs of its other metrics to every one.
    def _compute(self, nats, pixels, tokens=None) -> dict[str, float]:
        count = int(whole_numbers("pixels", pixels, low=1).sum())
        return {"bits_per_pixel": total("nats", nats) / count / math.log(2)}
