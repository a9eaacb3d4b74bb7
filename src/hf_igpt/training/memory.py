"""Bytes that training takes on one device, from the config and the settings of a run alone."""

from dataclasses import dataclass

from hf_igpt.configuration_igpt import SLIDING, ImageGPTConfig
from hf_igpt.functional_igpt import SMALL_ELEMENTS
from hf_igpt.losses_igpt import BLOCK_LOGITS, CPU_BLOCK_LOGITS, MAX_HEAD_BLOCKS
from hf_igpt.training.arguments import ADAMW, MUON
from hf_igpt.training.cost import attention_window, block_matrices, block_parameters, parameters, product_parameters


FULL_PRECISION, HALF_PRECISION = 4, 2  # bytes of a number
# Where a block's backward pass needs most, in the activation, it holds so many tensors of the MLP's width.
WORKING_TENSORS = 2


@dataclass(frozen=True)
class TrainingSetting:
    """
    What decides about memory beside the model.

    Args:
        images: images at once on one device.
        is_half: products in bf16 or fp16 under autocast; the weights stay in float32.
        on_cpu: norms and activations are recomputed there (`functional_igpt`).
        attention: backend; "eager" alone keeps a square of the tokens.
        gradient_checkpointing: blocks keep their input and run again in the backward pass.
        accumulates: gradients of several batches add up, so that they are there from the start of a backward pass.
        devices: devices that train together.
        sharding: "none", every device has the whole training state (DDP); "full", each has its part (FSDP).
        dropout: whether dropout is on.
        optimizer: "adamw", or "muon", which keeps one mean of the blocks' matrices instead of two.
    """

    images: int
    is_half: bool = False
    on_cpu: bool = True
    attention: str = "sdpa"
    gradient_checkpointing: bool = False
    accumulates: bool = False
    devices: int = 1
    sharding: str = "none"
    dropout: bool = False
    optimizer: str = ADAMW

    @property
    def product_bytes(self) -> int:
        """Of a number that goes into a matrix product or comes out of one."""
        return HALF_PRECISION if self.is_half else FULL_PRECISION


@dataclass(frozen=True)
class TrainingMemory:
    """
    Bytes on one device, by part.

    Attributes:
        weights: float32, under autocast the master copies.
        optimizer: Adam's two means, of Muon's matrices one, float32.
        gradients: float32.
        copies: half-precision copies of the weights, which autocast keeps until the backward pass has used them.
        exchange: buffers of the exchange between devices: DDP's buckets, or FSDP's blocks in one piece.
        activations: what the backward pass needs, at its start.
        loss: logits of one block of tokens and their gradient.
        working: of the block that the backward pass is at, beside its activations.
        accumulates: whether gradients are there while activations are.
    """

    weights: int
    optimizer: int
    gradients: int
    copies: int
    exchange: int
    activations: int
    loss: int
    working: int
    accumulates: bool

    @property
    def peak(self) -> int:
        """
        The most at one moment: where the backward pass starts, all activations are there and, without accumulation,
        no gradient yet; where it ends, all gradients and the activations of one block.
        """
        start = self.copies + self.activations + max(self.loss, self.working)
        if self.accumulates:
            start += self.gradients
        return self.weights + self.optimizer + self.exchange + max(start, self.gradients + self.working)

    def by_part(self) -> dict[str, int]:
        """Bytes of every part, and the peak, which is less than their sum."""
        parts = {name: value for name, value in vars(self).items() if name != "accumulates"}
        return {**parts, "peak": self.peak}


def training_memory(config: ImageGPTConfig, setting: TrainingSetting) -> TrainingMemory:
    """Memory of a training step, without what the allocator and the libraries hold for themselves."""
    count = parameters(config)
    share = setting.devices if setting.sharding == "full" else 1
    own = -(-count // share)
    # Muon doesn't run where the training state is shared out.
    single_means = block_matrices(config) if setting.optimizer == MUON else 0
    per_layer = [activation_bytes(config, setting, layer) for layer in range(config.num_hidden_layers)]
    residual = setting.images * config.n_positions * config.hidden_size * FULL_PRECISION
    if setting.gradient_checkpointing:
        activations, working = config.num_hidden_layers * residual, max(per_layer)
    else:
        activations, working = sum(per_layer), 0
    return TrainingMemory(
        weights=own * FULL_PRECISION,
        optimizer=(2 * own - single_means) * FULL_PRECISION,
        gradients=own * FULL_PRECISION,
        copies=product_parameters(config) * HALF_PRECISION if setting.is_half and share == 1 else 0,
        exchange=_exchange_bytes(config, setting, count),
        # The final norm keeps its input, the head its own.
        activations=activations + residual + residual * setting.product_bytes // FULL_PRECISION,
        loss=_loss_bytes(config, setting),
        working=working + _working_bytes(config, setting),
        accumulates=setting.accumulates,
    )


def activation_bytes(config: ImageGPTConfig, setting: TrainingSetting, layer: int) -> int:
    """What a block keeps for its backward pass, for all images at once; with checkpointing, when it runs again."""
    tokens, heads = setting.images * config.n_positions, config.num_attention_heads
    width, inner, product = config.hidden_size, config.intermediate_size, setting.product_bytes
    # The residual stream in front of both norms, the norms' statistics, and of attention query, key, value, output.
    kept = 2 * width * FULL_PRECISION + 2 * FULL_PRECISION
    kept += (4 + _window_copies(config, setting, layer)) * width * product + heads * FULL_PRECISION
    if config.rotary_base is not None:
        kept += 2 * width * product  # turned queries and keys, beside those in one piece with the values
    if setting.is_half:
        kept += width * product  # attention's output goes through float32 on its way to the projection
    if setting.dropout:
        kept += 2 * width * (FULL_PRECISION if setting.on_cpu else 1)
    kept += inner * product
    if not _recomputes(config, setting):
        # Outputs of both norms, of the activation and, elsewhere than on a CPU, of its sigmoid.
        kept += 2 * width * product + inner * product
    if not _has_blocks(config, setting):
        kept += inner * product
    return tokens * kept + _square_bytes(config, setting)


def cache_bytes(config: ImageGPTConfig, images: int, bytes_per_number: int = FULL_PRECISION) -> int:
    """Keys and values of a whole image in decoding; a windowed layer keeps those of its window."""
    windows = (attention_window(config, layer) for layer in range(config.num_hidden_layers))
    tokens = sum(config.n_positions if window is None else min(window, config.n_positions) for window in windows)
    return 2 * images * tokens * config.hidden_size * bytes_per_number


def _window_copies(config: ImageGPTConfig, setting: TrainingSetting, layer: int) -> int:
    """
    Tensors of the residual stream's width that sdpa keeps beside the usual four where it attends to a window: queries
    in blocks, keys and values of each block and its neighbours, the blocks' output before it is put together.
    """
    window = attention_window(config, layer)
    if setting.attention != "sdpa" or window is None or window >= config.n_positions:
        return 0
    return 2 + 2 * (2 if config.is_causal else 3)


def _has_blocks(config: ImageGPTConfig, setting: TrainingSetting) -> bool:
    """Whether norm and activation are those of `functional_igpt` that keep their input alone."""
    elements = setting.images * config.n_positions * config.hidden_size
    return setting.on_cpu and not setting.is_half and elements >= SMALL_ELEMENTS


def _recomputes(config: ImageGPTConfig, setting: TrainingSetting) -> bool:
    elements = setting.images * config.n_positions * config.hidden_size
    return setting.on_cpu and elements >= SMALL_ELEMENTS and not setting.gradient_checkpointing


def _square_bytes(config: ImageGPTConfig, setting: TrainingSetting) -> int:
    """Attention weights that the eager backend keeps: in float32, in half precision, and which are hidden."""
    if setting.attention != "eager":
        return 0
    square = setting.images * config.n_positions**2
    is_masked = config.is_causal or SLIDING in config.attention_types
    per_head = FULL_PRECISION + (HALF_PRECISION if setting.is_half else 0)
    return square * (config.num_attention_heads * per_head + (1 if is_masked else 0))


def _loss_bytes(config: ImageGPTConfig, setting: TrainingSetting) -> int:
    """Of one block of tokens (`losses_igpt`): log probabilities in float32, their gradient and that of the logits."""
    logits = setting.images * config.n_positions * config.num_values
    block = max(CPU_BLOCK_LOGITS if setting.on_cpu else BLOCK_LOGITS, logits // MAX_HEAD_BLOCKS)
    return min(logits, block) * 3 * FULL_PRECISION


def _working_bytes(config: ImageGPTConfig, setting: TrainingSetting) -> int:
    tokens = setting.images * config.n_positions
    working = tokens * (
        WORKING_TENSORS * config.intermediate_size * setting.product_bytes + 2 * config.hidden_size * FULL_PRECISION
    )
    if setting.attention == "eager":
        square = tokens * config.n_positions * config.num_attention_heads * FULL_PRECISION
        working = max(working, 3 * square)
    return working


def _exchange_bytes(config: ImageGPTConfig, setting: TrainingSetting, count: int) -> int:
    if setting.devices == 1:
        return 0
    if setting.sharding == "none":
        return count * FULL_PRECISION
    # Embeddings and head stay whole; of blocks the one at work, the next one, and the gradient of one.
    block = block_parameters(config)
    outside = count - config.num_hidden_layers * block
    return (outside + 3 * block) * setting.product_bytes
