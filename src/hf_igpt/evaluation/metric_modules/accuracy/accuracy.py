"""Accuracy of class predictions, for the library `evaluate`."""

import datasets
import evaluate

from hf_igpt.evaluation.metrics import whole_numbers


class Accuracy(evaluate.Metric):
    """Share of images whose predicted class is the right one, in [0, 1]."""

    def _info(self) -> evaluate.MetricInfo:
        # As floats: as integer features, logits given by mistake would be cut to whole numbers in silence.
        features = {name: datasets.Value("float64") for name in ("predictions", "references")}
        return evaluate.MetricInfo(
            description=self.__class__.__doc__,
            citation="",
            inputs_description="predictions: a class for every image, counted from 0; references: the right ones.",
            features=datasets.Features(features),
        )

    # `evaluate.combine` hands the inputs of its other metrics to every one.
    def _compute(self, predictions, references, nats=None, tokens=None, pixels=None) -> dict[str, float]:
        right = whole_numbers("predictions", predictions) == whole_numbers("references", references)
        return {"accuracy": float(right.mean())}
