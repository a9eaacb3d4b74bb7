"""What is known of a checkpoint: the results.json files about it, found beside it or named."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_igpt.results import RESULTS, read_results
from hf_igpt.token_kinds_igpt import VQVAE


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """
    One results.json.

    Args:
        kind: what it is of: pretraining, likelihood, probe, finetuning, samples, conversion, palette, vqvae or tokens.
        name: of the folder it was found in.
        content: as `read_results` gives it.
        folder: where pictures of it lie; None for a file alone.
    """

    kind: str
    name: str
    content: dict[str, Any]
    folder: Path | None = None

    @property
    def digests(self) -> set[str]:
        """SHA-256 of the weights it is about: those measured or left by a run, and those that the run started from."""
        found = {self.content.get("model_sha256"), (self.content.get("checkpoint") or {}).get("sha256")}
        return found - {None}

    @property
    def metrics(self) -> dict[str, Any]:
        """Its figures."""
        return self.content["metrics"]


def read_result(path: str | os.PathLike, name: str | None = None) -> Result:
    """
    Reads a results.json from a folder or by its own name.

    Raises:
        ValueError: it is damaged, or of something that no card reports.
    """
    path = Path(path)
    content = read_results(path)
    if (kind := kind_of(content)) is None:
        raise ValueError(f"{path} holds results that no card reports: {content['command']!r}.")
    return Result(kind, name or path.stem, content, path if path.is_dir() else None)


def kind_of(results: dict[str, Any]) -> str | None:
    """What a results.json is of, by what it measured; None for anything that no card reports."""
    metrics = results["metrics"]
    if "from_scratch" in results:
        return "finetuning"
    if "probe" in results:
        return "probe"
    if "codes_hash" in results:
        return VQVAE
    for field, kind in (
        ("training_flops", "pretraining"),
        ("nats_per_token", "likelihood"),
        ("masked_nats_per_token", "likelihood"),
        ("source_format", "conversion"),
        ("psnr_db", "palette"),
    ):
        if field in metrics:
            return kind
    if "num_images" in metrics and "tokens" in results["arguments"]:
        return "tokens"
    return "samples" if "num_samples" in results["arguments"] else None


def gather(
    model: Path, digest: str, named: Sequence[str | os.PathLike] = (), token_hash: str | None = None
) -> list[Result]:
    """
    The results about a checkpoint: those of its run, those in the folders beside it, and those that are named.

    Args:
        model: the checkpoint folder, `model` in a run's folder.
        digest: SHA-256 of its weights.
        token_hash: of its tokens: results of the VQ-VAE whose codes they are belong to it too.

    Raises:
        ValueError: named results are damaged, or of other weights or another VQ-VAE.
    """
    found = []
    for path in _beside(model):
        result = _of_interest(path)
        if result is not None and _belongs(result, path, model, digest, token_hash):
            found.append(result)
    for path in named:
        result = read_result(path)
        if result.kind == VQVAE:
            if (codes := result.content["codes_hash"]) != token_hash:
                raise ValueError(
                    f"{path} is about the VQ-VAE with the hash {codes}, and the tokens of {model} have {token_hash}. "
                    "Leave it out."
                )
        elif digest not in result.digests:
            raise ValueError(
                f"{path} is about weights with SHA-256 {' and '.join(sorted(result.digests)) or 'unknown'}, and "
                f"{model} has {digest}. Leave it out, or measure this checkpoint."
            )
        if all(result.content != other.content for other in found):
            found.append(result)
    return found


def published(repository: str, digest: str) -> list[Result]:
    """
    The results about a checkpoint that lie in its repository on the Hub.

    Raises:
        ValueError: results are damaged.
        OSError: the repository can't be read.
    """
    from huggingface_hub import snapshot_download

    from hf_igpt.hub.card_facts import RESULTS_FOLDER

    folder = Path(snapshot_download(repository, allow_patterns=[f"{RESULTS_FOLDER}/*.json"]))
    found = [_of_interest(path) for path in sorted((folder / RESULTS_FOLDER).glob("*.json"))]
    return [result for result in found if result is not None and digest in result.digests]


def _beside(model: Path) -> Iterable[Path]:
    """Folders that may hold results about a checkpoint: itself, its run, and the run's own folders."""
    run = model.parent
    yield from (path for path in (model, run) if (path / RESULTS).is_file())
    yield from sorted(path.parent for path in run.glob(f"*/{RESULTS}") if path.parent != model)


def _of_interest(path: Path) -> Result | None:
    content = read_results(path)
    kind = kind_of(content)
    return None if kind is None else Result(kind, path.name, content, path)


def _belongs(result: Result, path: Path, model: Path, digest: str, token_hash: str | None) -> bool:
    """Whether results found beside a checkpoint are about it."""
    if result.kind == VQVAE and result.content["codes_hash"] == token_hash:
        return True
    if result.kind in ("palette", "tokens") or digest in result.digests:
        return True
    # Runs of earlier versions didn't note which weights they left: their `model` folder tells.
    if path == model.parent and model.name == "model" and "model_sha256" not in result.content:
        return True
    logger.info("%s is about other weights and stays out of the card.", path)
    return False
