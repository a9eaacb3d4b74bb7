"""Nats per token of images, for the library `evaluate`."""

import datasets
import evaluate

from hf_igpt.evaluation.metrics import total, whole_numbers


class NatsPerToken(evaluate.Metric):
    """Negative log-likelihood in nats, divided by the number of tokens; both summed over images."""

    def _info(self) -> evaluate.MetricInfo:
        # `tokens` as a float: as an integer feature, half a token would be cut to a whole number in silence.
        features = datasets.Features({"nats": datasets.Value("float64"), "tokens": datasets.Value("float64")})
        return evaluate.MetricInfo(
            description=self.__class__.__doc__,
            citation="",
            inputs_description="nats: sum over the tokens of one image; tokens: how many those are.",
            features=features,
        )

    # `evaluate.combine` hands the inputs of its other metrics to every one.
    def _compute(self, nats, tokens, pixels=None) -> dict[str, float]:
        return {"nats_per_token": total("nats", nats) / int(whole_numbers("tokens", tokens, low=1).sum())}
