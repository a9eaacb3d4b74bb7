"""What the probe command measures for one checkpoint, on stored features or while the model runs."""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_igpt.data.masking import Masking, masking_for


if TYPE_CHECKING:
    import numpy as np
    from accelerate import PartialState
    from datasets import DatasetDict

    from hf_igpt.commands.probe import ProbeArguments
    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.modeling_igpt import ImageGPTPreTrainedModel


@dataclass(frozen=True)
class ProbeJob:
    """
    One checkpoint to probe.

    Args:
        arguments: of the command.
        name: folder or Hub name of the checkpoint.
        model, processor, digest: what `load_checkpoint` gives, the model on its device.
        tokens, labels: of the splits "train", "validation" and "test".
        names: of the classes.
        masks: the options of masks, empty for a next-pixel model.
        folder: for results.
        made_from: what they depend on.
    """

    arguments: "ProbeArguments"
    name: str
    model: "ImageGPTPreTrainedModel"
    processor: "IGPTImageProcessor"
    digest: str
    tokens: "DatasetDict"
    labels: "dict[str, np.ndarray]"
    names: list[str]
    masks: dict[str, Any]
    folder: Path
    made_from: dict[str, Any]

    @property
    def layers(self) -> list[int]:
        """Those to probe."""
        return self.arguments.layers or list(range(self.model.config.num_hidden_layers + 1))

    @property
    def num_masks(self) -> int:
        """Masks of every test image."""
        return self.masks["num_masks"] if self.masking is not None else 1

    @cached_property
    def masking(self) -> Masking | None:
        """What hides tokens."""
        rate = self.masks.get("mask_rate")
        return masking_for(self.model.config, rate, self.arguments.seed) if rate else None

    @property
    def training_folder(self) -> Path:
        """Where probes that are trained keep their checkpoints until the results are written."""
        return self.folder.with_name(f"{self.folder.name}-training")


def online_metrics(job: ProbeJob, state: "PartialState") -> dict[str, Any]:
    """Figures of probes that are trained while the model runs. All processes call it."""
    from hf_igpt.training.online_probing import OnlineProbeSettings, train_online_probes

    arguments = job.arguments
    settings = OnlineProbeSettings(
        solver=arguments.solver,
        num_classes=len(job.names),
        layers=job.layers,
        concatenate=arguments.concatenate,
        normed=arguments.norm == "post",
        standardize=arguments.standardize,
        masking=job.masking,
        num_masks=job.num_masks,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
    )
    started = time.perf_counter()
    metrics = train_online_probes(
        job.model, job.processor, job.tokens, job.labels, settings, arguments, job.training_folder, job.made_from
    )
    return metrics | {"pixels": None, "low_data": None, "fit_seconds": time.perf_counter() - started}


def stored_metrics(job: ProbeJob, state: "PartialState") -> dict[str, Any] | None:
    """Figures of probes of stored features, on the main process; the others only help to compute these."""
    from tqdm.auto import tqdm

    from hf_igpt.evaluation.feature_store import export_features
    from hf_igpt.evaluation.low_data import low_data_probes
    from hf_igpt.evaluation.probes import NEIGHBOURS, PENALTIES, ProbeData, fit_probes

    arguments, labels = job.arguments, job.labels
    seconds = time.perf_counter()
    features, test_masks = _features(job, state)
    seconds = time.perf_counter() - seconds
    if not state.is_main_process:
        return None
    if arguments.export is not None:
        export_features(arguments.export, features, labels, job.names)
    data = ProbeData(features, labels, len(job.names), test_masks)
    common = {"standardize": arguments.standardize, "device": state.device}
    options = {"solver": arguments.solver, "seed": arguments.seed, "refit": arguments.refit, **common}
    fitting = [count for count in NEIGHBOURS if count <= len(labels["train"])] or [len(labels["train"])]
    options |= {"penalties": arguments.penalties or PENALTIES, "neighbours": arguments.neighbours or fitting}
    options |= {"temperature": arguments.temperature}
    started = time.perf_counter()
    with tqdm(total=len(job.layers), desc="Probing layers") as bar:
        metrics = fit_probes(
            data, layers=job.layers, concatenate=arguments.concatenate, progress=bar.update, **options
        )
    metrics["pixels"] = _probe_pixels(job, options) if arguments.pixels else None
    metrics["low_data"] = None
    if arguments.labels_per_class:
        metrics["low_data"] = low_data_probes(
            data,
            metrics["best"]["layer"],
            arguments.labels_per_class,
            num_subsets=arguments.num_subsets,
            seed=arguments.seed,
            concatenate=arguments.concatenate,
            **({"penalties": arguments.penalties} if arguments.penalties else {}),
            **common,
        )
    return metrics | {"feature_seconds": seconds, "fit_seconds": time.perf_counter() - started}


def _features(job: ProbeJob, state: "PartialState") -> tuple[dict[str, list], list[list]]:
    """Features of the splits, and those of test under further masks."""
    from tqdm.auto import tqdm

    from hf_igpt.commands.checkpoints import beside
    from hf_igpt.evaluation.feature_store import FeatureSettings, prepare_features

    arguments = job.arguments
    settings = FeatureSettings(job.processor.token_hash, arguments.norm == "post", job.masking)
    folder = Path(arguments.features_dir or beside(job.name, "features"))

    def prepare(split: str, number: int) -> list:
        share = -(-len(job.tokens[split]) // state.num_processes)
        with tqdm(total=share, desc=f"Features of {split}", disable=not state.is_main_process) as bar:
            return prepare_features(
                folder,
                job.model,
                job.digest,
                job.tokens[split],
                split,
                settings,
                state,
                mask=(number, job.num_masks),
                batch_size=arguments.batch_size,
                progress=bar.update,
            )

    features = {split: prepare(split, 0) for split in job.labels}
    return features, [prepare("test", number) for number in range(1, job.num_masks)]


def _probe_pixels(job: ProbeJob, options: dict[str, Any]) -> dict[str, Any]:
    """The same probe of what the model is given: the colours that its tokens stand for, float32."""
    import numpy as np

    from hf_igpt.data.token_store import token_rows
    from hf_igpt.evaluation.probes import ProbeData, fit_probes

    pixels = {
        split: [np.float32(job.processor.decode_pixels(token_rows(job.tokens[split])).reshape(len(labels), -1)) / 255]
        for split, labels in job.labels.items()
    }
    row = fit_probes(ProbeData(pixels, job.labels, len(job.names)), **options)["best"]
    return row | {"layer": None}
