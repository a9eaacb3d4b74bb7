"""What a model card says, taken from a model or from the results of the run that made it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_igpt.hub.evidence import Result
from hf_igpt.hub.repository_names import hub_name
from hf_igpt.token_kinds_igpt import describe_tokens


if TYPE_CHECKING:
    from hf_igpt.configuration_igpt import ImageGPTConfig
    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.modeling_igpt import ImageGPTPreTrainedModel

RESULTS_FOLDER = "results"
HEADS = {
    "ImageGPTForCausalImageModeling": "next_pixel",
    "ImageGPTForMaskedImageModeling": "masked",
    "ImageGPTForImageClassification": "classifier",
    "ImageGPTModel": "backbone",
}


@dataclass(frozen=True)
class CardFacts:
    """
    What a model card is rendered from.

    Args:
        name: repository, or the recipe's name for a card that isn't published.
        head: next_pixel, masked, classifier or backbone.
        shape: "layers", "width", "heads", "parameters", "grid" (height, width), "cell_size" (pixels of a cell's
            side), "values" of a token.
        token_kind: palette, rgb or vqvae.
        token_hash: short hash of what tokens mean.
        results: what was measured.
        pictures: captions by path in the repository.
        code_files: SHA-256 by name of the files that run without the package; empty for none.
        license: a licence's name on the Hub, or None.
        dataset: name on the Hub of the training images, where the results don't tell.
        base_model: name on the Hub of the model that this one started from.
        tags: more tags, such as those of the run's tracker.
        results_folder: where the results.json files lie, seen from the card.
    """

    name: str
    head: str
    shape: dict[str, Any]
    token_kind: str
    token_hash: str
    results: Sequence[Result]
    pictures: dict[str, str] = field(default_factory=dict)
    code_files: dict[str, str] = field(default_factory=dict)
    license: str | None = None
    dataset: str | None = None
    base_model: str | None = None
    tags: Sequence[str] = ()
    results_folder: str = RESULTS_FOLDER

    @property
    def tokens(self) -> str:
        """What an image is to the model, in words."""
        height, width = self.shape["grid"]
        cells = f"{height}x{width} cells of {describe_tokens(self.token_kind, self.shape['values'])}"
        if (side := self.shape["cell_size"]) == 1:
            return cells
        return f"{cells}, each code for {side}x{side} of the {height * side}x{width * side} pixels of an image"

    def of_kind(self, kind: str) -> list[Result]:
        """The results of one kind."""
        return [result for result in self.results if result.kind == kind]

    @property
    def making(self) -> Result | None:
        """The run that left these weights: fine-tuning for a classifier, pretraining otherwise; or a conversion."""
        kind = "finetuning" if self.head == "classifier" else "pretraining"
        return next(iter(self.of_kind(kind) + self.of_kind("conversion")), None)

    @property
    def started_from(self) -> str | None:
        """Name on the Hub of the model that these weights were fine-tuned or converted from, as far as it is known."""
        option = {"finetuning": "model", "conversion": "source"}.get(self.making.kind if self.making else "")
        return self.base_model or (hub_name(self.making.content["arguments"].get(option)) if option else None)

    @property
    def source(self) -> dict[str, Any]:
        """Where the training images are from: name, revision, notes; as far as it is known."""
        if self.making is None:
            return {}
        dataset = self.making.content.get("dataset") or {}
        found = dataset.get("source", dataset) or {}
        # Results of earlier versions have the name among the arguments alone.
        name = found.get("name") or self.making.content["arguments"].get("dataset_name")
        return {**found, "name": name} if name else {}

    @property
    def dataset_name(self) -> str | None:
        """The training images' name: the one given, the one on the Hub, or whatever the run called them."""
        return self.dataset or (self.source.get("hub") or {}).get("name") or self.source.get("name")

    @property
    def hub_dataset(self) -> str | None:
        """Their name on the Hub; None for images that aren't there."""
        return self.dataset or (self.source.get("hub") or {}).get("name")

    @property
    def dataset_revision(self) -> str | None:
        """The commit or revision of the images on the Hub."""
        return (self.source.get("hub") or {}).get("revision") or self.source.get("revision")


def facts_of_model(
    name: str, model: "ImageGPTPreTrainedModel", processor: "IGPTImageProcessor", **others: Any
) -> CardFacts:
    """The facts of a loaded model. `others` are the remaining fields of `CardFacts`."""
    shape = _shape(model.config, model.num_parameters(), processor.cell_size)
    return CardFacts(name, HEADS[type(model).__name__], shape, processor.token_kind, processor.token_hash, **others)


def facts_of_run(name: str, results: Sequence[Result], **others: Any) -> CardFacts:
    """
    The facts of a run of pretraining, from its results alone.

    Raises:
        ValueError: results of pretraining are not among them.
    """
    run = next((result for result in results if result.kind == "pretraining"), None)
    if run is None:
        raise ValueError(f"There are no results of pretraining among those of {name}.")
    from hf_igpt.data.options import TokenLayout, grid_size, token_layout
    from hf_igpt.data.token_store import token_hash_in
    from hf_igpt.training.arguments import PretrainArguments
    from hf_igpt.training.pretraining import model_config

    arguments = PretrainArguments(**run.content["arguments"])
    tokens = run.content.get("tokens")
    if tokens is None:
        # Written when there were palettes only.
        layout = token_layout(arguments)
    else:
        layout = TokenLayout(**{field.name: tokens[field.name] for field in dataclasses.fields(TokenLayout)})
    token_hash = token_hash_in(run.content)
    cell_size = grid_size(arguments)["height"] // layout.grid[0]
    shape = _shape(model_config(arguments, layout), run.metrics["parameters"], cell_size)
    return CardFacts(name, arguments.objective, shape, layout.token_kind, token_hash, results, **others)


def _shape(config: "ImageGPTConfig", parameters: int, cell_size: int) -> dict[str, Any]:
    return {
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "parameters": parameters,
        "grid": config.grid,
        "cell_size": cell_size,
        "values": config.num_values,
    }
