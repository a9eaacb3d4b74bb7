"""
Configuration of a VQ-VAE whose codes take the place of colours as Image GPT's tokens.

Only the first version of the paper used one. What is known of it (from its abstract and from others who cite it): the
model reached 69.0 % on ImageNet with VQ-VAE codes of images of up to 192x192 pixels; the VQ-VAE was deliberately
shallow and its receptive field small, so that codes keep the place of what they show. Its layers, sizes, losses and
training were not published. All of that here is our choice, after van den Oord et al., "Neural Discrete Representation
Learning" (2017), with the revival of unused codes of Dhariwal et al., "Jukebox" (2020).
"""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from .config_files_igpt import (
    CheckedConfigMixin,
    named_errors,
    refuse_foreign_fields,
    require_int,
    require_number,
)


AUTO_MAP = {
    "AutoConfig": "configuration_igpt_vqvae.ImageGPTVQVAEConfig",
    "AutoModel": "modeling_igpt_vqvae.ImageGPTVQVAEModel",
}

DOWNSAMPLINGS = (2, 4, 8)
MAX_CODES = 8192
MAX_WIDTH = 1024
MAX_BLOCKS = 16


class ImageGPTVQVAEConfig(CheckedConfigMixin, PreTrainedConfig):
    r"""
    Configuration of `ImageGPTVQVAEModel`. It is fully convolutional and has no size of image: height and width must be
    multiples of `downsampling`. All defaults are our choice, see above.

    Args:
        downsampling (`int`, defaults to 4): side in pixels of what one code stands for, 2, 4 or 8. At 4 an image of
            192x192 becomes 48x48 codes.
        codebook_size (`int`, defaults to 4096): number of codes, 2 to 8192.
        code_size (`int`, defaults to 64): numbers in a code's vector.
        hidden_size (`int`, defaults to 128): channels at the resolution of the codes; half of it at twice that
            resolution, and so on.
        num_residual_blocks (`int`, defaults to 2): residual blocks in the encoder, and as many in the decoder. Each
            widens the receptive field by `2 * downsampling` pixels.
        residual_size (`int`, defaults to 64): channels inside a residual block.
        commitment_weight (`float`, defaults to 1.0): weight of the loss that keeps the encoder near the codes, beside
            the mean squared error of pixels in [-1, 1].
        ema_decay (`float`, defaults to 0.95): decay, for each optimizer step, of the running counts and sums that the
            codes are the means of.
        revival_threshold (`float`, defaults to 0.1): a code whose running count is at most this share of the mean
            count is replaced by a vector of the step; 0 replaces none.
        revival_seed (`int`, defaults to 0): seed of which vectors those are.

    Raises:
        ValueError: a field is out of range, or a name is a misspelt field.
    """

    model_type = "igpt_vqvae"
    _auto_class = "AutoConfig"

    downsampling: int = 4
    codebook_size: int = 4096
    code_size: int = 64
    hidden_size: int = 128
    num_residual_blocks: int = 2
    residual_size: int = 64
    commitment_weight: float = 1.0
    ema_decay: float = 0.95
    revival_threshold: float = 0.1
    revival_seed: int = 0

    def __post_init__(self, **kwargs: Any):
        self.refuse_misspelt_names(kwargs)
        self.refuse_taken_names(kwargs)
        self.validate_inherited(kwargs)
        if kwargs.get("quantization_config") is not None:
            raise ValueError(
                "`quantization_config` must be left out of a VQ-VAE's config: rounded weights would give other codes."
            )
        super().__post_init__(**kwargs)
        self.validate_fields()

    def validate_fields(self) -> None:
        """Checks every field; the model calls it again, since fields may be set after construction."""
        if isinstance(self.downsampling, bool) or self.downsampling not in DOWNSAMPLINGS:
            raise ValueError(f"`downsampling` must be 2, 4 or 8, got {self.downsampling!r}.")
        require_int("codebook_size", self.codebook_size, 2, MAX_CODES)
        require_int("code_size", self.code_size, 1, MAX_WIDTH)
        require_int("hidden_size", self.hidden_size, self.downsampling, MAX_WIDTH)
        require_int("num_residual_blocks", self.num_residual_blocks, 0, MAX_BLOCKS)
        require_int("residual_size", self.residual_size, 1, MAX_WIDTH)
        require_number("commitment_weight", self.commitment_weight, 0.0, 1e6)
        require_number("ema_decay", self.ema_decay, 0.0, 0.999999)
        require_number("revival_threshold", self.revival_threshold, 0.0, 1.0)
        require_int("revival_seed", self.revival_seed, 0, 2**31 - 1)

    @property
    def receptive_field(self) -> int:
        """Side in pixels of the part of an image that one code depends on."""
        return 3 * self.downsampling - 2 + 2 * self.downsampling * self.num_residual_blocks

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """
        Rows and columns of codes of an image of so many pixels.

        Raises:
            ValueError: height or width is no multiple of `downsampling`, or 0.
        """
        for name, side in (("height", height), ("width", width)):
            if side < 1 or side % self.downsampling:
                lower = max(1, side // self.downsampling) * self.downsampling
                raise ValueError(
                    f"An image's {name} must be a multiple of `downsampling`, {self.downsampling} pixels, got {side}. "
                    f"Resize or crop it, to {lower} for example."
                )
        return height // self.downsampling, width // self.downsampling

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """
        As in transformers.

        Raises:
            ValueError: as the class; for the config of another kind of model; for fields that name code or files.
        """
        with named_errors(kwargs.get("name_or_path")):
            refuse_foreign_fields(config_dict)
            model_type = config_dict.get("model_type", cls.model_type)
            if model_type != cls.model_type:
                raise ValueError(f"`model_type` must be {cls.model_type!r}, got {model_type!r}.")
            return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, with the whole `auto_map`."""
        return super().to_dict() | {"auto_map": dict(AUTO_MAP)}


__all__ = ["ImageGPTVQVAEConfig"]
