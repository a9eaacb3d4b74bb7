"""Images out of a model."""

from hf_igpt.generation.sampling import complete, sample


__all__ = ["complete", "sample"]
