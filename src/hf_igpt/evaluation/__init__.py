"""What a model learnt, in numbers."""

from hf_igpt.evaluation.likelihood import Likelihood, baselines, log_likelihood
from hf_igpt.evaluation.masked import likelihood_bound, masked_metrics, masked_nats_per_token


__all__ = [
    "Likelihood",
    "baselines",
    "likelihood_bound",
    "log_likelihood",
    "masked_metrics",
    "masked_nats_per_token",
]
