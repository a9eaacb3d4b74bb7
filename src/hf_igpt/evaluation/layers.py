"""One pass through a backbone that shows every layer's features as they arise, so that none has to be kept."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch

    from hf_igpt.modeling_igpt import ImageGPTPreTrainedModel


def visit_layers(
    model: "ImageGPTPreTrainedModel",
    tokens: "torch.LongTensor",
    visit: Callable[[int, "torch.Tensor"], Any],
    *,
    bool_masked_pos: "torch.BoolTensor | None" = None,
    normed: bool = True,
) -> None:
    """
    Runs the backbone on whole images as it was pretrained (`ImageGPTModel.encode`) and calls `visit(layer, states)`
    for layers 0 to `num_hidden_layers` in order, with states of shape (B, T, C).

    Args:
        model: a backbone or any of its heads.
        tokens: ids of shape (B, T), without the start token, on the model's device.
        bool_masked_pos: for masked models, True where a token is hidden, of shape (B, T).
        normed: show the normed input of each block's attention and, last, the final norm's output, the features of the
            paper (section 2.4); otherwise the residual stream that goes into these norms.
    """
    backbone = model.base_model

    def shown(layer: int) -> Callable[..., None]:
        # A hook that returns something would replace the norm's output.
        def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            visit(layer, output if normed else inputs[0])

        return hook

    norms = [*(block.ln_1 for block in backbone.h), backbone.ln_f]
    handles = [norm.register_forward_hook(shown(layer)) for layer, norm in enumerate(norms)]
    try:
        backbone.encode(tokens, bool_masked_pos=bool_masked_pos)
    finally:
        for handle in handles:
            handle.remove()
