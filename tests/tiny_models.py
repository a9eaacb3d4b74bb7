"""Tiny models with every parameter random, for tests that a model at its initialisation would pass whatever it did."""

import torch

from hf_igpt import (
    IGPTImageProcessor,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTForMaskedImageModeling,
    ImageGPTVQVAEConfig,
    ImageGPTVQVAEModel,
)


def tiny_config(**overrides) -> ImageGPTConfig:
    """3 x 4 tokens of 10 values, 2 layers of 3 heads: no two sizes equal, so that no axis can stand for another."""
    sizes = {
        "vocab_size": 11,
        "image_size": [3, 4],
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
    }
    return ImageGPTConfig(**{**sizes, **overrides})


@torch.no_grad()
def randomize_(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fills every parameter, biases and output head included, so that logits have a spread of about 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.dim() > 1:
            std = 1.0 if "wte" in name or "wpe" in name else model.config.hidden_size**-0.5
            parameter.copy_(std * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.3 * noise)
        else:
            parameter.copy_(1 + 0.3 * noise)
    return model


def code_processor(height: int, width: int, num_codes: int = 10, seed: int = 0) -> IGPTImageProcessor:
    """Images of so many pixels to codes of 2 x 2 pixels, by a VQ-VAE that was never trained."""
    torch.manual_seed(seed)
    sizes = {"downsampling": 2, "codebook_size": num_codes, "code_size": 4, "hidden_size": 8, "residual_size": 4}
    vqvae = ImageGPTVQVAEModel(ImageGPTVQVAEConfig(**sizes))
    return IGPTImageProcessor(size={"height": height, "width": width}, token_kind="vqvae", vqvae=vqvae)


def random_tokens(config: ImageGPTConfig, batch: int = 2, length: int | None = None, seed: int = 1) -> torch.Tensor:
    """Ids of shape (batch, tokens), without the start token; no two images equal."""
    generator = torch.Generator().manual_seed(seed)
    length = config.n_positions if length is None else length
    return torch.randint(0, config.num_values, (batch, length), generator=generator)


def with_start(config: ImageGPTConfig, tokens: torch.Tensor) -> torch.Tensor:
    """The tokens behind the start token and without the last one: what teacher forcing feeds the backbone."""
    return torch.cat([tokens.new_full((tokens.shape[0], 1), config.start_token_id), tokens[:, :-1]], dim=1)


def tiny_causal(dtype: torch.dtype = torch.float64, seed: int = 0, **overrides) -> ImageGPTForCausalImageModeling:
    """A causal head in evaluation mode whose logits are known to depend on the image."""
    model = randomize_(ImageGPTForCausalImageModeling(tiny_config(**overrides)).eval(), seed).to(dtype)
    assert_discriminates(model)
    return model


def tiny_masked(dtype: torch.dtype = torch.float64, seed: int = 0, **overrides) -> ImageGPTForMaskedImageModeling:
    """A masked head in evaluation mode whose logits at a hidden pixel are known to depend on the image."""
    model = randomize_(ImageGPTForMaskedImageModeling(tiny_config(**overrides)).eval(), seed).to(dtype)
    tokens = random_tokens(model.config)
    hidden = torch.zeros_like(tokens, dtype=torch.bool)
    hidden[:, ::3] = True
    first, second = model(input_ids=tokens, bool_masked_pos=hidden).logits.detach().float()
    assert 0.5 < first.std() < 5
    assert (first - second)[::3].abs().mean() > 0.1
    return model


@torch.no_grad()
def assert_discriminates(model: ImageGPTForCausalImageModeling) -> None:
    """No vacuous pass: logits differ between images and from each other by about 1."""
    first, second = model(labels=random_tokens(model.config)).logits.float()
    assert 0.5 < first.std() < 5
    assert (first[1:] - second[1:]).abs().mean() > 0.1


def reference_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Leaves in float64 under the names of the reference, so that gradients can be compared by name."""
    parameters = model.named_parameters()
    return {n.removeprefix("transformer."): p.detach().double().requires_grad_() for n, p in parameters}


def assert_gradients_equal(model: torch.nn.Module, weights: dict[str, torch.Tensor], atol: float) -> None:
    for name, parameter in model.named_parameters():
        expected = weights[name.removeprefix("transformer.")].grad
        assert expected.abs().max() > 1e-4, f"the test does not reach {name}"
        torch.testing.assert_close(parameter.grad.double(), expected, atol=atol, rtol=0, msg=name)


def assert_checkpointing_changes_nothing(model: ImageGPTForCausalImageModeling) -> None:
    """Loss and every gradient of a model in training mode, with gradient checkpointing and without."""
    tokens = random_tokens(model.config)
    losses = []
    for _ in range(2):
        model.zero_grad()
        loss = model(labels=tokens).loss
        loss.backward()
        losses.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
        model.gradient_checkpointing_enable()
    torch.testing.assert_close(losses[1], losses[0], atol=1e-12, rtol=0)
