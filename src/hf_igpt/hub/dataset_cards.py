"""Cards of tokenized data sets: what the tokens are, where the images are from, how to get images back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_igpt.data.token_repository import TOKENS, processor_folder
from hf_igpt.hub.card_text import code, escaped, plain_line, single_gaps, table
from hf_igpt.hub.repository_names import hub_name
from hf_igpt.token_kinds_igpt import PALETTE, RGB, VQVAE, describe_tokens


if TYPE_CHECKING:
    from datasets import DatasetDict
    from huggingface_hub import DatasetCard

TEMPLATE = Path(__file__).parent / "templates" / "dataset_card.md"
_MEANINGS = {
    PALETTE: "Token t is colour t of the palette in",
    RGB: "The tokens of a pixel are its levels of red, green and blue, as the image processor makes them in",
    VQVAE: "Token t is code t of the VQ-VAE that belongs to",
}
_LOSSES = {
    PALETTE: "The images can't be had back from the tokens: their colours and their size are reduced.",
    RGB: "The tokens hold the images without loss at the size of the grid: who publishes them publishes images.",
    VQVAE: "The images can't be had back from the tokens: a VQ-VAE gives images like them, of reduced size.",
}
TAGS = ("hf-igpt", "image-gpt", "tokens")


def dataset_card(
    name: str,
    tokens: "DatasetDict",
    *,
    processor_sha256: str,
    pictures: dict[str, str],
    results: dict[str, Any] | None = None,
    license: str | None = None,
    dataset: str | None = None,
) -> "DatasetCard":
    """
    The card of a tokenized data set.

    Args:
        name: repository.
        tokens: the splits.
        processor_sha256: of the image processor's file.
        pictures: captions by path in the repository.
        results: the results.json of the tokenizing, where there is one.
        license: a licence's name on the Hub.
        dataset: name on the Hub of the images, where the record has only a local path.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    import hf_igpt
    from hf_igpt.data.token_store import tokens_info

    info = tokens_info(tokens)
    height, width = info["grid"]
    source = _source(info, dataset)
    data = DatasetCardData(
        license=license,
        source_datasets=[source["hub"]] if source["hub"] else None,
        pretty_name=plain_line(name),
        tags=list(TAGS),
        configs=[{"config_name": "default", "data_files": [_files(split) for split in tokens]}],
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=escaped(name),
        name=name,
        summary=(
            f"Images of {code(source['name'])} as tokens for Image GPT: {height}x{width} cells of "
            f"{describe_tokens(info['token_kind'], info['num_values'])}."
        ),
        pictures="\n\n".join(f"![{escaped(caption)}]({path})" for path, caption in pictures.items()),
        facts="\n".join(f"- {line}" for line in _facts(info, processor_sha256)),
        splits=table(("split", "images", "columns"), _splits(tokens)),
        usage=_usage(name, next(iter(tokens)), processor_folder(info["token_kind"])),
        making="\n".join(f"- {line}" for line in _making(info, source, results)),
        limits="\n".join(f"- {line}" for line in _limits(info, source, license)),
        version=hf_igpt.__version__,
    )
    return DatasetCard(single_gaps(str(card)))


def _source(info: dict[str, Any], dataset: str | None) -> dict[str, Any]:
    """Name, Hub name, revision and notes of the images."""
    found = info["source"] or {}
    hub = found.get("hub") or {}
    name = dataset or hub.get("name") or found.get("name") or "images whose name is not known"
    revision = hub.get("revision") or found.get("revision")
    return {
        "name": name,
        "hub": hub_name(dataset or hub.get("name")),
        "revision": revision,
        "notes": found.get("notes") or [],
    }


def _files(split: str) -> dict[str, str]:
    return {"split": split, "path": f"{TOKENS}/{split}/*.arrow"}


def _facts(info: dict[str, Any], processor_sha256: str) -> Iterator[str]:
    height, width = info["grid"]
    yield (
        f"{code('input_ids')}: {height * width * info['num_channels']} tokens of 0 to {info['num_values'] - 1}, the "
        f"cells of a grid of {height} rows and {width} columns in raster order, without a start token."
    )
    file = f"{processor_folder(info['token_kind'])}/preprocessor_config.json"
    yield (
        f"{_MEANINGS[info['token_kind']]} {code(file)} (hash {code(info['token_hash'])}, SHA-256 of the file "
        f"{code(processor_sha256)})."
    )
    size = info["processor"]["size"]
    rows, columns = size["height"] // height, size["width"] // width
    if rows * columns > 1:
        yield f"A code stands for {rows}x{columns} of the {size['height']}x{size['width']} pixels of an image."
    settings = ", ".join(f"{name} {json.dumps(value)}" for name, value in info["processor"].items())
    yield f"The image processor's settings: {code(settings)}."


def _splits(tokens: "DatasetDict") -> Iterator[tuple[str, ...]]:
    for name, split in tokens.items():
        yield code(name), f"{len(split):,}", ", ".join(map(code, split.column_names))


def _usage(name: str, split: str, processor: str) -> str:
    return "\n".join(
        [
            "from datasets import load_dataset",
            "from hf_igpt import IGPTImageProcessor",
            "from huggingface_hub import snapshot_download",
            "",
            f"name = {json.dumps(name)}",
            f"tokens = load_dataset(name, split={json.dumps(split)})",
            f'folder = snapshot_download(name, repo_type="dataset", allow_patterns="{processor}/*")',
            f'processor = IGPTImageProcessor.from_pretrained(f"{{folder}}/{processor}")',
            'images = processor.decode(tokens[:4]["input_ids"])  # Pillow images',
        ]
    )


def _making(info: dict[str, Any], source: dict[str, Any], results: dict[str, Any] | None) -> Iterator[str]:
    revision = f", revision {code(source['revision'])}" if source["revision"] else ""
    yield f"Images: {code(source['name'])}{revision}."
    yield from map(escaped, source["notes"])
    if info["skipped"]:
        yield f"{len(info['skipped'])} images could not be read and were left out."
    if results is None:
        yield f"Made with version {code(info['version'])} of hf_igpt; the command was not recorded."
        return
    commit = results["commit"]
    made_at = f", commit {code(commit['sha'][:12])}" if commit else ""
    yield f"Command: {code(results['command'])}{made_at}."


def _limits(info: dict[str, Any], source: dict[str, Any], license: str | None) -> Iterator[str]:
    yield _LOSSES[info["token_kind"]]
    yield f"Whatever holds for {code(source['name'])}, its terms included, holds for what is derived from it."
    if license is None:
        yield "No licence is stated: ask the authors before you use it."
