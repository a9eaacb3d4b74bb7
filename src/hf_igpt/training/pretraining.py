"""Pretraining from images to a checkpoint folder, in stages: palette, tokens, training, model, results."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_igpt.data.augmentation import RESIZED_CROP
from hf_igpt.data.token_repository import TOKENS, processor_folder
from hf_igpt.processes import process_state
from hf_igpt.storage import MANIFEST, sha256
from hf_igpt.token_kinds_igpt import PALETTE
from hf_igpt.training.arguments import MUON
from hf_igpt.training.jobs import check_backend, crop_dataset, throughput_of, token_dataset
from hf_igpt.training.run_folder import run_identity
from hf_igpt.training.runs import last_train_loss, run_training
from hf_igpt.training.trainer_arguments import split_batch, trackers, training_arguments


if TYPE_CHECKING:
    from datasets import DatasetDict

    from hf_igpt.configuration_igpt import ImageGPTConfig
    from hf_igpt.data.options import TokenLayout
    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.training.arguments import PretrainArguments
    from hf_igpt.training.initial_weights import InitialWeights
    from hf_igpt.training.trainer import IGPTTrainer

CURVE = "loss.png"


def pretrain(arguments: "PretrainArguments") -> dict[str, Any]:
    """
    Does what `hf-igpt pretrain` does and returns the contents of results.json.

    Raises:
        ValueError: bad options, bad data, or an output folder of another run.
        TrainingStopped: training had to end early; the last good checkpoint is kept.
    """
    state = process_state()
    _check(arguments)
    initial = _initial_weights(arguments)
    named = _named_processor(arguments, state)
    if initial is not None and named is not None:
        _check_meaning(named, initial, arguments)
    tokens_folder = _find_tokens(arguments, state)
    identity = run_identity(arguments) | _tokens_identity(tokens_folder) | _weights_identity(initial)
    identity |= {} if named is None else {"token_hash": named.token_hash}

    def build() -> "tuple[IGPTTrainer, DatasetDict]":
        nonlocal initial
        if tokens_folder is None:
            source, processor, tokens = _prepare(arguments, initial, named, state)
        else:
            source, (processor, tokens) = None, _ready_tokens(arguments, named, tokens_folder)
        if initial is not None:
            _check_meaning(processor, initial, arguments)
        trainer = _build_trainer(arguments, initial, source, processor, tokens)
        initial = None  # Weights as large as the model's own: training goes on without them.
        return trainer, tokens

    def measure(trainer: "IGPTTrainer", tokens: "DatasetDict") -> dict[str, Any]:
        return _metrics(trainer, arguments, tokens)

    def record(trainer: "IGPTTrainer", tokens: "DatasetDict", metrics: dict[str, Any]) -> dict[str, Any]:
        return _record(trainer, arguments, tokens, metrics)

    return run_training(arguments, identity, build, measure, record)


def _check(arguments: "PretrainArguments") -> None:
    """Everything that can be wrong before data is read."""
    arguments.check()
    import matplotlib.figure  # noqa: F401  # if it is missing, that is said here and not after the training

    from hf_igpt.data.augmentation import check_augmentation
    from hf_igpt.data.options import grid_size, token_layout
    from hf_igpt.training.sharding import check_launcher, refuse_shards

    check_launcher(arguments.dropout, arguments.gradient_checkpointing)
    if arguments.optimizer == MUON:
        refuse_shards("optimizer: muon")
    layout = token_layout(arguments)
    if layout is not None:
        model_config(arguments, layout)
    split_batch(arguments)
    trackers(arguments.report_to)
    if arguments.augmentation != RESIZED_CROP:
        grid = tuple(grid_size(arguments).values())
        check_augmentation(arguments.augmentation, grid, arguments.augmentation_padding)
    elif arguments.streaming or arguments.skip_damaged:
        raise ValueError(
            "`augmentation: random_resized_crop` reads the images again in every epoch: `streaming` and "
            "`skip_damaged` must be off."
        )
    elif arguments.palette is None and arguments.crop_size is None:
        raise ValueError(
            "`augmentation: random_resized_crop` needs `crop_size`, the side of the crops in pixels, 224 in the paper."
        )
    check_backend(arguments.attn_implementation)


def _named_processor(arguments: "PretrainArguments", state: Any) -> "IGPTImageProcessor | None":
    """The image processor that the options name, or make of the VQ-VAE that they name."""
    from hf_igpt.data.options import fixed_processor, grid_size
    from hf_igpt.image_processing_igpt import IGPTImageProcessor

    if arguments.palette is None and arguments.vqvae is None:
        return None
    with state.main_process_first():
        if arguments.vqvae is not None:
            return fixed_processor(arguments.token_kind, grid_size(arguments), arguments.crop_size, arguments.vqvae)
        processor = IGPTImageProcessor.from_pretrained(arguments.palette)
    _check_given(processor, arguments)
    return processor


def _prepare(
    arguments: "PretrainArguments",
    initial: "InitialWeights | None",
    named: "IGPTImageProcessor | None",
    state: Any,
) -> tuple[Any, Any, "DatasetDict"]:
    """Processor and tokens, made by all processes together. Downloads are the first one's, and read by the others."""
    from hf_igpt.data.options import load_source
    from hf_igpt.data.preparation import prepare_tokens

    folder = Path(arguments.output_dir)
    with state.main_process_first():
        source = load_source(arguments)
    processor = _processor(arguments, initial, named, source, folder)
    tokens = prepare_tokens(
        folder / TOKENS, source, processor, num_proc=arguments.num_proc, skip_damaged=arguments.skip_damaged
    )
    return source, processor, tokens


def _processor(
    arguments: "PretrainArguments",
    initial: "InitialWeights | None",
    named: "IGPTImageProcessor | None",
    source: Any,
    folder: Path,
) -> "IGPTImageProcessor":
    """What makes the tokens: named, that of the weights to begin with, or made here."""
    from hf_igpt.data.options import crop_fields, grid_size
    from hf_igpt.data.preparation import prepare_fixed, prepare_palette

    if arguments.palette is not None:
        return named
    if initial is not None:
        return initial.processor.with_size(grid_size(arguments), **crop_fields(arguments.crop_size))
    made = folder / processor_folder(arguments.token_kind)
    options = {
        "size": grid_size(arguments),
        "crop_size": arguments.crop_size,
        "skip_damaged": arguments.skip_damaged,
    }
    if arguments.token_kind == PALETTE:
        return prepare_palette(made, source, num_colors=arguments.num_colors, seed=arguments.seed, **options)
    return prepare_fixed(made, source, token_kind=arguments.token_kind, vqvae=arguments.vqvae, **options)


def _find_tokens(arguments: "PretrainArguments", state: Any) -> Path | None:
    """The folder of the tokens that the options name, fetched by one process where they are on the Hub."""
    from hf_igpt.data.token_repository import find_tokens

    if arguments.tokens is None:
        return None
    with state.main_process_first():
        return find_tokens(arguments.tokens)


def _tokens_identity(tokens_folder: Path | None) -> dict[str, str]:
    """What tells these tokens from later ones of the same name."""
    return {} if tokens_folder is None else {"tokens_manifest": sha256(tokens_folder / MANIFEST)}


def _initial_weights(arguments: "PretrainArguments") -> "InitialWeights | None":
    from hf_igpt.training.initial_weights import load_initial_weights

    if arguments.init_from is None:
        return None
    initial = load_initial_weights(arguments.init_from, lambda theirs: model_config(arguments, theirs))
    if arguments.palette is None and arguments.tokens is None:
        _check_kind(initial.processor, arguments, arguments.init_from)
        if initial.processor.palette is not None and arguments.num_colors != initial.processor.num_colors:
            raise ValueError(
                f"`num_colors` is {arguments.num_colors}, but the palette of {arguments.init_from} has "
                f"{initial.processor.num_colors} colours, with which the run goes on. Give that number."
            )
    return initial


def _weights_identity(initial: "InitialWeights | None") -> dict[str, str]:
    """What tells these weights from later ones of the same name."""
    return {} if initial is None else {"initial_weights": initial.digest}


def _check_meaning(processor: "IGPTImageProcessor", initial: "InitialWeights", arguments: "PretrainArguments") -> None:
    theirs, ours = ((owner.token_kind, owner.token_hash) for owner in (initial.processor, processor))
    if theirs != ours:
        raise ValueError(
            f"`init_from`: the tokens of {arguments.init_from} are of {' '.join(theirs)}, those of "
            f"{arguments.palette or arguments.tokens} of {' '.join(ours)}, so that they mean something else. Leave "
            "`palette` out, or tokenize with the checkpoint's."
        )


def _ready_tokens(
    arguments: "PretrainArguments", named: "IGPTImageProcessor | None", folder: Path
) -> "tuple[IGPTImageProcessor, DatasetDict]":
    """Tokens that were made before, and the image processor that made them."""
    from hf_igpt.data.token_repository import processor_beside
    from hf_igpt.data.token_store import check_tokens, load_tokens
    from hf_igpt.image_processing_igpt import IGPTImageProcessor

    tokens = load_tokens(folder)
    processor = named or IGPTImageProcessor.from_pretrained(processor_beside(folder))
    check_tokens(tokens, processor)
    _check_given(processor, arguments)
    if "train" not in tokens:
        raise ValueError(f"{arguments.tokens} has no split 'train', only {', '.join(tokens)}.")
    return processor, tokens


def _check_given(processor: "IGPTImageProcessor", arguments: "PretrainArguments") -> None:
    from hf_igpt.data.options import grid_size

    name = arguments.palette or arguments.tokens
    _check_kind(processor, arguments, name)
    if processor.size != grid_size(arguments):
        raise ValueError(
            f"`image_size` is {arguments.image_size}, but the processor of {name} brings images to {processor.size}. "
            "Give the same size, or fit a palette for it."
        )


def _check_kind(processor: "IGPTImageProcessor", arguments: "PretrainArguments", name: str | None) -> None:
    if processor.token_kind != arguments.token_kind:
        raise ValueError(
            f"`token_kind` is {arguments.token_kind!r}, but the tokens of {name} are of the kind "
            f"{processor.token_kind!r}. Give that kind, or other tokens."
        )


def model_config(
    arguments: "PretrainArguments", tokens: "TokenLayout | IGPTImageProcessor | ImageGPTConfig"
) -> "ImageGPTConfig":
    """The config of the model that the options ask for, for such tokens."""
    from hf_igpt.configuration_igpt import PRESETS, ImageGPTConfig
    from hf_igpt.training.attention_windows import attention_fields

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    sizes = PRESETS[arguments.preset] if arguments.preset else {name: getattr(arguments, name) for name in names}
    windows = attention_fields(
        arguments.attention_window_rows,
        arguments.full_attention_every,
        sizes["num_hidden_layers"],
        tokens.grid,
        tokens.num_channels,
    )
    return ImageGPTConfig(
        vocab_size=tokens.num_values + 1,
        image_size=list(tokens.grid),
        num_channels=tokens.num_channels,
        token_kind=tokens.token_kind,
        is_causal=arguments.objective == "next_pixel",
        rotary_base=arguments.rotary_base,
        embd_pdrop=arguments.dropout,
        resid_pdrop=arguments.dropout,
        **sizes,
        **windows,
    )


def _build_trainer(
    arguments: "PretrainArguments",
    initial: "InitialWeights | None",
    source: Any,
    processor: "IGPTImageProcessor",
    tokens: "DatasetDict",
) -> "IGPTTrainer":
    from transformers import set_seed

    from hf_igpt.training.callbacks import SampleGridCallback
    from hf_igpt.training.initial_weights import copy_weights
    from hf_igpt.training.objectives import collator, model_class
    from hf_igpt.training.trainer import IGPTTrainer

    set_seed(arguments.seed)
    config = model_config(arguments, processor)
    training = training_arguments(arguments, len(tokens["train"]))
    # `from_config` picks the attention backend; a checkpoint of another backend loads all the same.
    model = model_class(config)._from_config(config, attn_implementation=arguments.attn_implementation)
    if initial is not None:
        copy_weights(initial, model)
    throughput = throughput_of(config, training, arguments.total_batch_size)
    trainer = IGPTTrainer(
        model,
        training,
        train_dataset=_train_dataset(arguments, source, processor, tokens),
        eval_dataset=token_dataset(tokens["validation"], processor) if "validation" in tokens else None,
        data_collator=collator(arguments, config),
        processing_class=processor,
        throughput=throughput,
        optimizer_cls_and_kwargs=_optimizer(arguments, model),
    )
    if arguments.sample_steps:
        trainer.add_callback(
            SampleGridCallback(
                processor,
                Path(arguments.output_dir),
                arguments.sample_steps,
                seed=arguments.seed,
                reporters=trainer.callback_handler.callbacks,
                throughput=throughput,
            )
        )
    return trainer


def _optimizer(arguments: "PretrainArguments", model: Any) -> tuple[Any, dict[str, Any]] | None:
    """Class and arguments of an optimizer that Trainer doesn't make by itself."""
    from hf_igpt.training.muon import MuonAdamW, muon_groups

    if arguments.optimizer != MUON:
        return None
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    groups = muon_groups(model, arguments.matrix_learning_rate, arguments.weight_decay)
    # Trainer takes `params` in place of its own groups.
    return MuonAdamW, {"params": groups, "lr": arguments.learning_rate, "betas": betas}


def _train_dataset(arguments: "PretrainArguments", source: Any, processor: Any, tokens: "DatasetDict") -> Any:
    if arguments.augmentation != RESIZED_CROP:
        return token_dataset(
            tokens["train"],
            processor,
            augment=arguments.augmentation,
            seed=arguments.seed,
            padding=arguments.augmentation_padding,
        )
    return crop_dataset(source, source.split("train"), processor, arguments.seed, label_column="none")


def _metrics(trainer: "IGPTTrainer", arguments: "PretrainArguments", tokens: "DatasetDict") -> dict[str, Any]:
    from hf_igpt.evaluation import baselines
    from hf_igpt.training.objectives import validation_metrics

    metrics: dict[str, Any] = {"train_loss": last_train_loss(trainer)}
    if "validation" in tokens:
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        metrics["validation"] = validation_metrics(model, tokens["validation"], arguments) | baselines(
            tokens["train"], tokens["validation"], trainer.model.config.num_values
        )
    return metrics


def _record(
    trainer: "IGPTTrainer", arguments: "PretrainArguments", tokens: "DatasetDict", metrics: dict[str, Any]
) -> dict[str, Any]:
    from hf_igpt.data.token_store import token_meaning, tokens_info
    from hf_igpt.plots import save_loss_curve

    info = tokens_info(tokens)
    validation = metrics.get("validation", {})
    references = {"unigram": validation["unigram_nats_per_token"]} if validation else {}
    save_loss_curve(trainer.state.log_history, Path(arguments.output_dir) / CURVE, references)
    return {
        "dataset": info["source"],
        "skipped": info["skipped"],
        "tokens": token_meaning(trainer.processing_class),
    }
