"""Images out of a model."""

from hf_igpt.generation.sampling import complete, inpaint, sample


__all__ = ["complete", "inpaint", "sample"]
