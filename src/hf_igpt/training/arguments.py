"""The fields of a pretraining recipe, and those that every training has."""

import dataclasses
from dataclasses import dataclass
from operator import not_

from hf_igpt.arguments import option
from hf_igpt.data.augmentation import AUGMENTATIONS, RESIZED_CROP, check_token_augmentation
from hf_igpt.data.masking import PAPER_RATE, UNIFORM
from hf_igpt.data.options import ImageOptions, TokenOptions
from hf_igpt.token_kinds_igpt import VQVAE


ADAMW, MUON = "adamw", "muon"


@dataclass(kw_only=True)
class StepOptions:
    """How to train, whatever is trained: batches, optimizer, devices, the log."""

    total_batch_size: int = option(128, "images per optimizer step over all devices", low=1)
    per_device_train_batch_size: int | None = option(
        None, "images at once on one device; by default a whole step's share. Lower it when memory runs out", low=1
    )
    max_steps: int | None = option(None, "optimizer steps, instead of num_train_epochs", low=1)
    adam_beta1: float = option(0.9, "Adam's first decay rate", low=0, high=0.9999)
    adam_beta2: float = option(0.95, "Adam's second decay rate", low=0, high=0.99999)
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0 does not clip", low=0)
    precision: str = option(
        "auto",
        "auto takes bf16 on a GPU that has it or a CPU with AMX, otherwise fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    cpu_threads: int | None = option(
        None, "threads of each process on a machine without a GPU; by default its share of the cores", low=1
    )
    dataloader_num_workers: int = option(0, "processes that make batches, on each device", low=0)
    ddp_timeout: int = option(
        1800, "seconds that processes wait for one that doesn't answer in training before all end", low=1
    )
    logging_steps: int = option(50, "optimizer steps between lines of the log", low=1)
    report_to: str = option(
        "auto",
        "tracker: auto takes TensorBoard where it is installed; or any name Trainer knows, such as wandb or trackio",
    )


@dataclass(kw_only=True)
class TrainerOptions(StepOptions):
    """How to train an Image GPT: the options of pretrain and finetune that mean the same in both."""

    dropout: float = option(0.0, "dropout probability after embeddings and projections", low=0, high=0.9)
    attn_implementation: str = option(
        "sdpa", "attention backend", choices=("eager", "sdpa", "flash_attention_2", "flex_attention")
    )
    augmentation_padding: int = option(
        4,
        "reflection padding of the crops in pixels",
        low=1,
        only_if=("augmentation", ("crop", "crop_flip").__contains__),
    )
    weight_decay: float = option(0.0, "decoupled weight decay of the projections alone", low=0, high=1)
    torch_compile: bool = option(False, "compile the model")
    gradient_checkpointing: bool = option(False, "less memory for more time: every block runs twice forward")
    push_to_hub: bool = option(False, "publish the model with its results and a card in the end, as push_to_hub does")
    hub_model_id: str | None = option(
        None, "OWNER/NAME of the repository to publish in; needed", only_if=("push_to_hub", bool)
    )
    hub_private_repo: bool | None = option(
        None, "whether a new repository is private; by default as the owner has it set", only_if=("push_to_hub", bool)
    )
    hub_license: str | None = option(
        None, "licence's name on the Hub, such as apache-2.0; by default none is stated", only_if=("push_to_hub", bool)
    )


@dataclass(kw_only=True)
class PretrainArguments(TrainerOptions, ImageOptions, TokenOptions):
    """Options of pretrain: where to write, which images, which tokens, which model, how to train, what to log."""

    output_dir: str = option("outputs/pretrain", "folder for everything the run writes")
    seed: int = option(0, "seed of initialisation, data order, augmentation, masks and samples", low=0, high=2**31 - 1)
    objective: str = option(
        "next_pixel",
        "predict every pixel from those before it, or hidden pixels from all others",
        choices=("next_pixel", "masked"),
    )
    mask_rate: float | str = option(
        PAPER_RATE,
        "probability that a pixel is hidden; or 'uniform': drawn anew for every image, which makes the loss an upper "
        "bound on the negative log-likelihood and the model one to sample from",
        above=0,
        high=1,
        choices=(UNIFORM,),
        only_if=("objective", "masked".__eq__),
    )
    tokens: str | None = option(
        None,
        "instead of images, tokens that tokenize_dataset wrote (a folder) or push_to_hub published (OWNER/NAME, or "
        "OWNER/NAME@COMMIT), with the image processor beside them",
    )
    dataset_name: str = option(
        "digits",
        "'digits' (scikit-learn's), a data set on the Hub, a local folder, or a parquet or tar file or glob",
        only_if=("tokens", not_),
    )
    palette: str | None = option(None, "folder or Hub name of an image processor to use instead of fitting a palette")
    init_from: str | None = option(
        None,
        "folder or Hub name of a checkpoint whose weights and palette the run begins with; positions learned on "
        "another grid are resampled",
    )
    augmentation: str = option(
        "none",
        "drawn anew for every image and epoch: reflection-padded crops and flips of the tokens, or ImageNet's random "
        "resize and 224-pixel crop of the pixels",
        choices=(*AUGMENTATIONS, RESIZED_CROP),
    )
    num_proc: int | None = option(None, "processes that tokenize", low=1, only_if=("streaming", not_))
    skip_damaged: bool = option(False, "leave out unreadable images, counted and named in results.json")

    preset: str | None = option(
        None, "a size of the paper instead of the next three", choices=("igpt-s", "igpt-m", "igpt-l", "igpt-xl")
    )
    hidden_size: int = option(512, "width of the model", low=1, only_if=("preset", not_))
    num_hidden_layers: int = option(24, "blocks of the model", low=1, only_if=("preset", not_))
    num_attention_heads: int = option(8, "attention heads in a block", low=1, only_if=("preset", not_))
    rotary_base: float | None = option(
        None,
        "base of the frequencies of rotary positions by row and column, beside the learned ones: 100 suits grids of "
        "up to 64x64; by default, as in the paper, there are none",
        above=1,
        high=1e6,
    )
    attention_window_rows: int | None = option(
        None, "rows of the image that attention reaches back, in masked models also ahead; by default all", low=1
    )
    full_attention_every: int = option(
        3,
        "every so many blocks one sees the whole image all the same; 0: none does",
        low=0,
        only_if=("attention_window_rows", bool),
    )

    per_device_eval_batch_size: int = option(
        64, "images at once on one device in validation", low=1, only_if=("fold_validation", not_)
    )
    num_train_epochs: float = option(10.0, "passes over the training images", above=0, only_if=("max_steps", not_))
    learning_rate: float = option(3e-3, "peak learning rate of Adam", above=0, high=1)
    warmup_epochs: float = option(1.0, "linear warm-up in epochs, then a cosine to zero", low=0)
    optimizer: str = option(
        "adamw",
        "adamw is the paper's Adam; muon trains the blocks' matrices by Muon and the rest by Adam, not under FSDP or "
        "DeepSpeed",
        choices=(ADAMW, MUON),
    )
    matrix_learning_rate: float = option(
        0.02, "peak learning rate of Muon", above=0, high=1, only_if=("optimizer", MUON.__eq__)
    )

    eval_steps: int = option(500, "optimizer steps between validations", low=1, only_if=("fold_validation", not_))
    save_steps: int = option(500, "optimizer steps between checkpoints", low=1)
    save_total_limit: int = option(2, "checkpoints kept", low=1)
    sample_steps: int = option(0, "optimizer steps between grids of samples; 0 draws none", low=0)

    def check(self) -> None:
        """
        Raises:
            ValueError: options that have no effect beside others, such as those about images where there are only
                tokens; or a VQ-VAE is wanted and none is named.
        """
        check_token_augmentation(self.augmentation, self.token_kind)
        is_named = self.vqvae or self.palette or self.tokens or self.init_from
        if self.token_kind == VQVAE and not is_named:
            raise ValueError("`token_kind: vqvae` needs `vqvae`, the folder or Hub name of one: see train_vqvae.")
        if self.token_kind == VQVAE and self.num_proc is not None:
            raise ValueError(
                "`num_proc` has no effect on codes, which one process makes with all threads or the GPU. Leave it out."
            )
        if self.vqvae is not None and (self.palette or self.tokens or self.init_from):
            raise ValueError(
                "`vqvae` has no effect beside `palette`, `tokens` or `init_from`, which name what makes the tokens. "
                "Leave it out."
            )
        if self.tokens is None:
            return
        names = [field.name for field in dataclasses.fields(ImageOptions) if field.name != "dataset_name"]
        fields = {field.name: field for field in dataclasses.fields(self)}
        for name in [*names, "num_proc", "skip_damaged"]:
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"`{name}` is about images and has no effect with `tokens`. Leave one of them out.")
        if self.augmentation == RESIZED_CROP:
            raise ValueError("`augmentation: random_resized_crop` reads images: give `dataset_name`, not `tokens`.")
