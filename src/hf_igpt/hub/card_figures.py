"""The figures of results.json files that cards report, one by one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hf_igpt.hub.evidence import Result
from hf_igpt.measured import SOLVERS


GENERATION, CLASSIFICATION = "unconditional-image-generation", "image-classification"
_BOUND = "upper bound on the negative log-likelihood"


@dataclass(frozen=True)
class Figure:
    """
    One measured number.

    Args:
        what: in words.
        metric: its name, with the unit.
        value: the number.
        text: the number as a reader wants it, with its error.
        task: a task's name on the Hub.
        split: of the data.
        of_model: whether it is a figure of the model itself; others stand beside it for comparison.
    """

    what: str
    metric: str
    value: float
    text: str
    task: str
    split: str = "test"
    of_model: bool = True


def figures(result: Result, head: str) -> Iterator[Figure]:
    """The figures of one results.json for the card of a model with this head; none for kinds that have no score."""
    if result.kind == "likelihood":
        yield from _likelihood(result.metrics, result.content["arguments"].get("split", "test"))
    elif result.kind == "pretraining":
        yield from _likelihood(result.metrics.get("validation", {}), "validation")
    elif result.kind == "probe":
        yield from _probe(result)
    elif result.kind == "finetuning":
        yield from _finetuning(result, head)


def _likelihood(metrics: dict[str, Any], split: str) -> Iterator[Figure]:
    names = {
        "nats_per_token": "negative log-likelihood",
        "bits_per_pixel": "negative log-likelihood",
        "bits_per_dim": f"negative log-likelihood of the RGB image, colours {metrics.get('color_density')}",
        "bound_nats_per_token": _BOUND,
        "bound_bits_per_pixel": _BOUND,
        "masked_nats_per_token": f"loss with {100 * metrics.get('mask_rate', 0):g} % of the cells hidden",
        "unigram_nats_per_token": "for comparison, a model of the tokens' frequencies",
        "uniform_nats_per_token": "for comparison, all tokens equally likely",
    }
    for field, what in names.items():
        if (value := metrics.get(field)) is None:
            continue
        error = metrics.get(f"{field}_standard_error")
        metric = next(name for name in ("bits_per_dim", "bits_per_pixel", "nats_per_token") if field.endswith(name))
        text = f"{value:.3f}" + (f" ± {error:.3f}" if error is not None else "")
        yield Figure(what, metric, value, text, GENERATION, split, of_model=not what.startswith("for comparison"))


def _probe(result: Result) -> Iterator[Figure]:
    best = result.metrics["best"]
    what = f"{solver(result)}, layer {best['layer']}"
    if "ensemble_test_accuracy" in best:
        yield _accuracy(f"{what}, {best['ensemble_masks']} masks", best["ensemble_test_accuracy"])
    else:
        yield _accuracy(what, best["test_accuracy"])
    if pixels := result.metrics.get("pixels"):
        what = "for comparison, logistic regression on the pixels"
        yield _accuracy(what, pixels["test_accuracy"], of_model=False)


def _finetuning(result: Result, head: str) -> Iterator[Figure]:
    if "test" not in result.metrics:
        return
    accuracy, is_scratch = result.metrics["test"]["accuracy"], result.content["from_scratch"]
    if head == "classifier":
        yield _accuracy("classifier trained from fresh weights" if is_scratch else "fine-tuned classifier", accuracy)
    else:
        started = "the same classifier from fresh weights" if is_scratch else "a classifier fine-tuned from it"
        yield _accuracy(f"for comparison, {started}", accuracy, of_model=False)


def _accuracy(what: str, share: float, of_model: bool = True) -> Figure:
    return Figure(what, "accuracy", share, f"{100 * share:.1f} %", CLASSIFICATION, of_model=of_model)


def solver(result: Result) -> str:
    """How a probe was fitted, in words."""
    probe = result.content["probe"]
    name = SOLVERS.get(probe["solver"], probe["solver"])
    return f"{name} on {probe['concatenate']} layers" if probe.get("concatenate", 1) > 1 else name
