"""Fields of the results.json files that figures are drawn from, checked one by one, and names of their values."""

from dataclasses import dataclass
from typing import Any


OBJECTIVES = {"next_pixel": "next pixel", "masked": "masked"}
# How a probe was fitted, in the words of cards and tables.
SOLVERS = {
    "lbfgs": "logistic regression",
    "sgd": "linear probe by SGD",
    "knn": "nearest neighbours",
    "attentive": "learned pooling",
}
# And where a figure has little room.
SHORT_SOLVERS = {
    "lbfgs": "linear probe",
    "sgd": "linear probe (SGD)",
    "knn": "nearest neighbours",
    "attentive": "attentive",
}


@dataclass(frozen=True)
class Measured:
    """
    One results.json.

    Args:
        results: as `hf_igpt.results.read_results` returns it.
        source: where it lies, for error messages.
        name: what the figure calls it; by default its checkpoint's name.
    """

    results: dict[str, Any]
    source: str = "results"
    name: str | None = None

    def get(self, field: str, kinds: type | tuple[type, ...], within: Any = None) -> Any:
        """A field such as "metrics.best.layer", of one of these types. ValueError names field and file."""
        value = self.results if within is None else within
        for key in field.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if not isinstance(value, kinds) or isinstance(value, bool):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(
                f"`{field}` in {self.source} must be {wanted}, got {value!r:.60}. "
                "Give results of `hf-igpt probe` or `hf-igpt finetune`, or make them again."
            )
        return value

    def percent(self, field: str, within: Any = None) -> float:
        """An accuracy in percent. ValueError where it isn't a fraction."""
        value = self.get(field, (float, int), within)
        if not 0 <= value <= 1:
            raise ValueError(f"`{field}` in {self.source} must be a fraction in [0, 1], got {value}.")
        return 100 * value

    @property
    def objective(self) -> str:
        objective = self.get("checkpoint.objective", str)
        if objective not in OBJECTIVES:
            raise ValueError(
                f"`checkpoint.objective` in {self.source} must be one of {', '.join(OBJECTIVES)}, got {objective!r}."
            )
        return objective
