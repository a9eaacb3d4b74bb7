"""Model cards: every figure from a results.json, rendered by huggingface_hub's card classes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_igpt.evaluation.color_density import NO_DENSITY
from hf_igpt.hub.card_facts import CardFacts
from hf_igpt.hub.card_figures import CLASSIFICATION, GENERATION, figures, solver
from hf_igpt.hub.card_text import code, escaped, plain_line, single_gaps, table
from hf_igpt.hub.evidence import Result
from hf_igpt.hub.usage import usage
from hf_igpt.token_kinds_igpt import VQVAE


if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
_DRAWN = ("samples", "completions", "inpainted")
TAGS = ("hf-igpt", "image-gpt", "igpt")
PIPELINE_TAGS = {
    "next_pixel": GENERATION,
    "masked": GENERATION,
    "classifier": CLASSIFICATION,
    "backbone": "image-feature-extraction",
}
_SUMMARIES = {
    "next_pixel": "An Image GPT that predicts every {part} of an image from those before it.",
    "masked": "An Image GPT that predicts hidden {part}s of an image from all others.",
    "classifier": "An Image GPT, fine-tuned to classify images.",
    "backbone": "The backbone of an Image GPT, without a head.",
}
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def model_card(facts: CardFacts) -> "ModelCard":
    """The card of a model. Whatever a run wrote into its results is shown as text."""
    from huggingface_hub import ModelCard

    import hf_igpt

    shape, part = facts.shape, "code" if facts.token_kind == VQVAE else "pixel"
    summary = (
        f"{_SUMMARIES[facts.head].format(part=part)} {shape['layers']} layers, {shape['width']} wide, "
        f"{shape['heads']} heads, {shape['parameters']:,} parameters; images are {facts.tokens} "
        f"(hash {code(facts.token_hash)})."
    )
    card = ModelCard.from_template(
        _card_data(facts),
        template_path=str(TEMPLATE),
        title=escaped(facts.name),
        summary=summary,
        samples="\n\n".join(_pictures(facts, are_samples=True)),
        plots="\n\n".join(_pictures(facts, are_samples=False)),
        usage=usage(facts.name, facts.head),
        code_files=table(("file", "SHA-256"), [(code(name), code(sha)) for name, sha in facts.code_files.items()]),
        measured=table(("what", "figure", "of", "JSON"), _measured(facts)),
        measured_note=_NOTE,
        low_data=table(("layer and solver", "labels of every class", "accuracy", "JSON"), _low_data(facts)),
        making="\n".join(f"- {line}" for line in _making(facts)),
        commands=table(("JSON", "command", "commit"), _commands(facts)),
        limits="\n".join(f"- {line}" for line in _limits(facts)),
        attribution=_attribution(facts),
        version=hf_igpt.__version__,
    )
    return ModelCard(single_gaps(str(card)))


_NOTE = (
    "Nats per token compare only between models of the same tokens and size; bits per pixel are bits of the tokens; "
    "bits per dim are of the RGB image at the size that the model sees. ± is the standard error over images, or the "
    "standard deviation over subsets. Layers count from 0, the normed embeddings; layer, penalty and rate are chosen "
    "on validation."
)


def _card_data(facts: CardFacts) -> Any:
    from huggingface_hub import ModelCardData

    found = list(_eval_results(facts))
    return ModelCardData(
        license=facts.license,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS[facts.head],
        datasets=[facts.hub_dataset] if facts.hub_dataset else None,
        base_model=facts.started_from,
        tags=list(dict.fromkeys([*TAGS, *filter(None, map(plain_line, facts.tags))])),
        model_name=plain_line(facts.name) if found else None,
        eval_results=found or None,
    )


def _eval_results(facts: CardFacts) -> "Iterator[EvalResult]":
    """The `model-index`: the model's likelihoods and accuracies on named data."""
    from huggingface_hub import EvalResult

    if facts.dataset_name is None:
        return
    for result in facts.results:
        for figure in figures(result, facts.head):
            if figure.of_model:
                yield EvalResult(
                    task_type=figure.task,
                    dataset_type=plain_line(facts.dataset_name),
                    dataset_name=plain_line(facts.dataset_name),
                    dataset_split=plain_line(figure.split),
                    dataset_revision=facts.dataset_revision,
                    metric_type=figure.metric,
                    metric_value=figure.value,
                    metric_name=f"{figure.metric.replace('_', ' ')}, {figure.what}",
                )


def _pictures(facts: CardFacts, are_samples: bool) -> Iterator[str]:
    """What the model drew, or what was drawn about it, each with its caption."""
    for path, caption in facts.pictures.items():
        if Path(path).stem.endswith(_DRAWN) == are_samples:
            yield f"![{escaped(caption)}]({path})\n\n{escaped(f'{caption}.')}"


def _measured(facts: CardFacts) -> Iterator[tuple[str, ...]]:
    for result in facts.results:
        for figure in figures(result, facts.head):
            unit = "" if figure.metric == "accuracy" else f" {figure.metric.replace('_', ' ')}"
            text = f"**{figure.text}**{unit}" if figure.of_model else figure.text + unit
            yield escaped(figure.what), text, code(figure.split), _link(facts, result)


def _low_data(facts: CardFacts) -> Iterator[tuple[str, ...]]:
    for result in facts.of_kind("probe"):
        for row in result.metrics.get("low_data") or ():
            layer = f"layer {result.metrics['best']['layer']}, {solver(result)}"
            accuracy = f"{100 * row['accuracy_mean']:.1f} ± {100 * row['accuracy_std']:.1f} %"
            yield escaped(layer), str(row["per_class"]), accuracy, _link(facts, result)


def _making(facts: CardFacts) -> Iterator[str]:
    """Where the weights are from, in sentences."""
    run = facts.making
    if facts.started_from:
        yield f"Started from {code(facts.started_from)}."
    if run is None:
        yield "The run that made these weights left no results here: data, command and cost are not known."
        return
    content, metrics = run.content, run.metrics
    if run.kind == "conversion":
        yield f"Converted from {code(content['arguments']['source'])} (format {code(metrics['source_format'])})."
        yield from map(escaped, metrics["notes"])
    else:
        yield _data_sentence(facts)
        steps, images = metrics["optimizer_steps"], metrics["images_seen"]
        yield f"{steps:,} steps, {images:,} images seen, {_cost(content, metrics)}."
        seeds = ", ".join(f"{escaped(name)} {value}" for name, value in content["seeds"].items())
        yield f"Seeds: {seeds}." if seeds else "No seed was recorded."
    yield f"Command: {code(content['command'])}, {_commit(content)}, {_hardware(content)}; {_versions(content)}."
    yield from _token_quality(facts)


def _token_quality(facts: CardFacts) -> Iterator[str]:
    """What is left of images in the tokens, where the results of a palette or a VQ-VAE tell."""
    for palette in facts.of_kind("palette"):
        quality = _psnr(palette.metrics)
        yield f"Palette {code(facts.token_hash)}: {facts.shape['values']} colours, which show its images {quality}."
    for vqvae in facts.of_kind(VQVAE):
        scored = {split: scores for split in ("test", "validation") if (scores := vqvae.metrics.get(split))}
        quality = " and ".join(f"its {split} images {_psnr(scores)}" for split, scores in scored.items())
        shown = f", which show {quality}" if quality else ""
        yield f"VQ-VAE {code(facts.token_hash)}: {facts.shape['values']} codes{shown} ({_link(facts, vqvae)})."


def _psnr(metrics: dict[str, Any]) -> str:
    psnr = metrics["psnr_db"]
    return "without loss" if psnr is None else f"with a PSNR of {psnr:.1f} dB"


def _data_sentence(facts: CardFacts) -> str:
    name = facts.dataset_name
    parts = [f"Trained on {code(name)}" if name else "Trained on images whose name is not known"]
    if facts.dataset_revision:
        parts.append(f", revision {code(facts.dataset_revision)}")
    notes = "".join(f" {escaped(note)}" for note in facts.source.get("notes") or ())
    skipped = len(facts.making.content.get("skipped") or ()) if facts.making else 0
    lost = f" {skipped} unreadable images were left out." if skipped else ""
    return "".join(parts) + "." + notes + lost


def _cost(content: dict[str, Any], metrics: dict[str, Any]) -> str:
    seconds = content.get("training_seconds")
    flops = f"{metrics['training_flops']:.2g} FLOP"
    return flops if seconds is None else f"{flops}, {seconds / 60:.1f} minutes of training"


def _commit(content: dict[str, Any]) -> str:
    commit = content["commit"]
    if commit is None:
        return "of an installed package"
    return f"commit {code(commit['sha'][:12])}" + (" with uncommitted changes" if commit["dirty"] else "")


def _hardware(content: dict[str, Any]) -> str:
    machine = content["hardware"]
    gpus = [gpu["name"] for gpu in machine["gpus"]]
    if gpus:
        return f"{len(gpus)} x {escaped(gpus[0])}"
    return f"{machine['cores']} cores of {escaped(machine['cpu'])}"


def _versions(content: dict[str, Any]) -> str:
    return ", ".join(f"{escaped(name)} {escaped(version)}" for name, version in content["versions"].items() if version)


def _commands(facts: CardFacts) -> Iterator[tuple[str, ...]]:
    for result in facts.results:
        yield _link(facts, result), code(result.content["command"]), _commit(result.content)


def _limits(facts: CardFacts) -> Iterator[str]:
    """What a reader must not expect, from what was and what wasn't measured."""
    yield f"It sees {facts.tokens}. Larger images are reduced, and what these can't tell is lost."
    data = code(facts.dataset_name) if facts.dataset_name else "its training images"
    yield f"It learnt from {data} alone: it knows what is shown there, and draws nothing else."
    if facts.token_kind == VQVAE and facts.head in ("next_pixel", "masked"):
        yield f"It has no bits/dim of the RGB image. {NO_DENSITY}"
    if facts.head == "masked" and not any("bound_nats_per_token" in r.metrics for r in facts.of_kind("likelihood")):
        yield "It was trained at one mask rate: it fills holes, and it is no generative model of whole images."
    kinds = {result.kind for result in facts.results}
    for kind, missing in (
        ("likelihood", "Its likelihood of held-out images"),
        ("probe", "What a classifier can read from its features"),
    ):
        if kind not in kinds and facts.head != "classifier":
            yield f"{missing} was not measured."
    if facts.license is None:
        yield "No licence is stated: ask its authors before you use it."


def _attribution(facts: CardFacts) -> str:
    run = facts.making
    return "; the weights are OpenAI's" if run and run.metrics.get("source_format") == "openai" else ""


def _link(facts: CardFacts, result: Result) -> str:
    return f"[{escaped(result.name)}]({facts.results_folder}/{results_name(result)})"


def results_name(result: Result) -> str:
    """File name of a results.json."""
    return f"{_UNSAFE.sub('-', result.name)}.json"
