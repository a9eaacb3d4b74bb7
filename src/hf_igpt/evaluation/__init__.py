"""What a model learnt, in numbers."""

from hf_igpt.evaluation.color_density import ColorCost, EmpiricalColors, cell_sizes, uniform_color_nats
from hf_igpt.evaluation.features import extract_features
from hf_igpt.evaluation.likelihood import Likelihood, baselines, log_likelihood
from hf_igpt.evaluation.masked import likelihood_bound, masked_metrics, masked_nats_per_token
from hf_igpt.evaluation.probes import ProbeData, fit_probes


__all__ = [
    "ColorCost",
    "EmpiricalColors",
    "Likelihood",
    "ProbeData",
    "baselines",
    "cell_sizes",
    "extract_features",
    "fit_probes",
    "likelihood_bound",
    "log_likelihood",
    "masked_metrics",
    "masked_nats_per_token",
    "uniform_color_nats",
]
