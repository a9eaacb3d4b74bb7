"""What a model learnt, in numbers."""

from hf_igpt.evaluation.likelihood import Likelihood, baselines, log_likelihood


__all__ = ["Likelihood", "baselines", "log_likelihood"]
