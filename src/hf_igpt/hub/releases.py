"""What is published: an explicit list of files, put together in a folder before anything is uploaded."""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_igpt.hub.card_facts import HEADS, RESULTS_FOLDER, CardFacts, facts_of_model
from hf_igpt.hub.code_files import code_files
from hf_igpt.hub.evidence import Result, gather
from hf_igpt.hub.model_cards import model_card, results_name
from hf_igpt.storage import sha256, write_json


if TYPE_CHECKING:
    from hf_igpt.configuration_igpt import ImageGPTConfig
    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.modeling_igpt import ImageGPTPreTrainedModel

logger = logging.getLogger(__name__)

CARD = "README.md"
_GRIDS = {
    "samples.png": "Images that the model drew, unselected",
    "completions.png": "Held-out images: what is given, what the model drew, the original",
}


@dataclass(frozen=True)
class CardOptions:
    """
    What results can't tell a card.

    Args:
        license: a licence's name on the Hub.
        dataset: name on the Hub of the training images, where a run read a local copy.
        base_model: name on the Hub of the model that this one started from.
        tags: more tags.
    """

    license: str | None = None
    dataset: str | None = None
    base_model: str | None = None
    tags: Sequence[str] = ()


def stage_model(
    model: str | os.PathLike,
    folder: Path,
    name: str,
    results: Sequence[str | os.PathLike] = (),
    options: CardOptions = CardOptions(),
) -> CardFacts:
    """
    Puts together what is published of a checkpoint: weights, config and processor, written anew by this package with
    its own code; results.json files; pictures of them; and the card.

    Args:
        model: the checkpoint folder.
        folder: an empty one.
        name: of the repository.
        results: more results.json files, or folders with them, besides those found beside the checkpoint.

    Raises:
        ValueError: the checkpoint is damaged, has weights that aren't finite, or results are of other weights.
    """
    from hf_igpt.weights import weights_digest

    loaded, processor = load_any_head(model)
    # Pipelines of others stay out; saving writes this package's own.
    loaded.config.custom_pipelines = {}
    loaded.save_pretrained(folder)
    processor.save_pretrained(folder)
    found = gather(Path(model), weights_digest(loaded), results, processor.token_hash)
    # Those of `hf-igpt sample` come before the grids of the training.
    found = sorted(
        (result for result in found if result.kind != "tokens"), key=lambda result: result.kind != "samples"
    )
    found = _with_unique_names(found)
    for result in found:
        write_json(folder / RESULTS_FOLDER / results_name(result), result.content)
    facts = facts_of_model(
        name,
        loaded,
        processor,
        results=found,
        pictures=_pictures(found, processor, folder),
        code_files=code_files(folder),
        license=options.license,
        dataset=options.dataset,
        base_model=options.base_model,
        tags=[*options.tags, *(tag for result in found for tag in result.content.get("model_tags") or ())],
    )
    model_card(facts).save(folder / CARD)
    return facts


def _training_samples(result: Result, folder: Path) -> dict[str, str]:
    """The last grid that a run drew while it trained, as a caption by path."""
    grids = {}
    for path in (result.folder / "samples").glob("step-*.png") if result.folder is not None else ():
        if (step := path.stem.removeprefix("step-")).isdigit():
            grids[int(step)] = path
    if not grids:
        return {}
    shutil.copyfile(grids[max(grids)], folder / "images" / "samples.png")
    return {"images/samples.png": f"Images that the model drew at step {max(grids)} of its training, unselected"}


def stage_tokens(
    tokens: str | os.PathLike,
    palette: str | os.PathLike,
    folder: Path,
    name: str,
    options: CardOptions = CardOptions(),
) -> dict[str, Any]:
    """
    Puts together what is published of a tokenized data set: its folder as it is, the image processor that made it,
    a picture of its palette where it has one, and the card. Returns the tokens' record.

    Args:
        tokens: folder of `save_tokens`.
        palette: folder of the image processor, of whatever kind its tokens are.
        folder: an empty one.
        name: of the repository.

    Raises:
        ValueError: the tokens are damaged, or were made by another image processor.
    """
    from hf_igpt import IGPTImageProcessor
    from hf_igpt.data.token_repository import TOKENS, processor_folder
    from hf_igpt.data.token_store import check_tokens, load_tokens
    from hf_igpt.hub.dataset_cards import dataset_card
    from hf_igpt.results import RESULTS, read_results

    if options.base_model:
        raise ValueError("`base_model` is for models; a tokenized data set has none. Leave it out.")
    splits, processor = load_tokens(tokens), IGPTImageProcessor.from_pretrained(palette)
    info = check_tokens(splits, processor)
    shutil.copytree(tokens, folder / TOKENS)
    inner = folder / processor_folder(processor.token_kind)
    processor.save_pretrained(inner)
    code_files(inner)
    (folder / "images").mkdir()
    pictures = _palette_picture(processor, folder)
    results = Path(tokens) / RESULTS
    card = dataset_card(
        name,
        splits,
        processor_sha256=sha256(inner / "preprocessor_config.json"),
        pictures=pictures,
        results=read_results(results) if results.is_file() else None,
        license=options.license,
        dataset=options.dataset,
    )
    card.save(folder / CARD)
    return info


def load_any_head(model: str | os.PathLike) -> "tuple[ImageGPTPreTrainedModel, IGPTImageProcessor]":
    """
    The model that a folder was saved from, with its image processor. The folder's own code is not run.

    Raises:
        ValueError: the folder isn't of this package, holds a VQ-VAE, or as `load_verified`.
    """
    import hf_igpt
    from hf_igpt.storage import read_json
    from hf_igpt.weights import load_verified

    if not (path := Path(model) / "config.json").is_file():
        raise ValueError(f"{model} is no checkpoint folder: it has no config.json.")
    if dict(read_json(path)).get("model_type") == hf_igpt.ImageGPTVQVAEConfig.model_type:
        raise ValueError(
            f"`model` must be a checkpoint of an Image GPT, and {model} is a VQ-VAE. It is published with every "
            "checkpoint whose tokens it makes: give one of these. To publish it alone, use its own method, "
            f"`ImageGPTVQVAEModel.from_pretrained({str(model)!r}).push_to_hub(...)`."
        )

    def saved_class(config: "ImageGPTConfig") -> "type[ImageGPTPreTrainedModel]":
        head = next(iter(config.architectures or ()), None)
        if head not in HEADS:
            raise ValueError(
                f"`architectures` in {model}/config.json must name one of {', '.join(HEADS)}, got {head!r}."
            )
        return getattr(hf_igpt, head)

    return load_verified(model, saved_class)


def _with_unique_names(results: list[Result]) -> list[Result]:
    """Results that would have one file name get a number."""
    taken: dict[str, int] = {}
    unique = []
    for result in results:
        name = result.kind if result.kind in ("pretraining", "conversion") else result.name
        taken[name] = taken.get(name, 0) + 1
        name = name if taken[name] == 1 else f"{name}-{taken[name]}"
        unique.append(Result(result.kind, name, result.content, result.folder))
    return unique


def _pictures(results: Sequence[Result], processor: "IGPTImageProcessor", folder: Path) -> dict[str, str]:
    """Draws the pictures that go with the results, and copies the grids of samples; captions by path."""
    from hf_igpt.figures import save_layer_curve
    from hf_igpt.plots import save_loss_curve

    (folder / "images").mkdir()
    captions = {}
    for result in results:
        if result.kind == "samples" and result.folder is not None:
            for name, caption in _GRIDS.items():
                if (result.folder / name).is_file() and f"images/{name}" not in captions:
                    shutil.copyfile(result.folder / name, folder / "images" / name)
                    captions[f"images/{name}"] = caption
        elif result.kind == "probe":
            path = f"images/{result.name}.png"
            save_layer_curve(result.content, folder / path)
            captions[path] = f"Accuracy of {result.name} at every layer"
        elif result.kind == "pretraining":
            captions |= _training_samples(result, folder) if "images/samples.png" not in captions else {}
            save_loss_curve(result.content["log_history"], folder / "images" / "loss.png")
            captions["images/loss.png"] = "Loss over the steps of pretraining"
    if not any(path.endswith("samples.png") for path in captions):
        logger.warning("There is no grid of samples beside the checkpoint: `hf-igpt sample` draws one for the card.")
    return captions | _palette_picture(processor, folder)


def _palette_picture(processor: "IGPTImageProcessor", folder: Path) -> dict[str, str]:
    """Draws the palette where there is one; its caption by path."""
    from hf_igpt.plots import palette_swatch, save_png

    if processor.palette is None:
        return {}
    save_png(palette_swatch(processor.palette), folder / "images" / "palette.png")
    return {"images/palette.png": f"The palette's {processor.num_colors} colours"}
