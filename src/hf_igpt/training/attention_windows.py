"""Windows of attention in rows of the image, as recipes give them, and what they become in a config."""

from typing import Any

from hf_igpt.configuration_igpt import FULL, SLIDING


def window_of_rows(rows: int, width: int, num_channels: int = 1) -> int:
    """
    The `sliding_window` in tokens with which a next-pixel model sees exactly `rows` rows back.

    Position i of such a model reads token i - 1, because the start token stands in front, and predicts token i. A
    window of W positions therefore shows it the tokens i - W to i - 1, and the pixel above token i is in it from
    W = width x `num_channels` on. With several tokens a pixel the last of them needs `num_channels` - 1 more, to see
    the whole pixel `rows` rows above. In a masked model position i reads token i, and sees as far on either side.
    """
    return rows * width * num_channels + num_channels - 1


def attention_fields(
    rows: int | None, full_attention_every: int, num_layers: int, grid: tuple[int, int], num_channels: int = 1
) -> dict[str, Any]:
    """
    `layer_types` and `sliding_window` of a config: every `full_attention_every`-th block sees the whole image (none
    where that is 0), the others see `rows` rows of it. Nothing for full attention, where `rows` is None.

    Raises:
        ValueError: windows as high as the image, no block left that has one, or none that sees all.
    """
    if rows is None:
        return {}
    height, width = grid
    if rows >= height:
        raise ValueError(
            f"`attention_window_rows` must be below the {height} rows of the image, got {rows}. Leave it out for full "
            "attention."
        )
    if full_attention_every == 1 or full_attention_every > num_layers:
        raise ValueError(
            f"`full_attention_every` must be 0 or from 2 to the model's {num_layers} blocks, got "
            f"{full_attention_every}. Take 0 for windows in every block; leave out `attention_window_rows` for none."
        )
    is_full = [full_attention_every > 0 and layer % full_attention_every == 0 for layer in range(1, num_layers + 1)]
    return {
        "layer_types": [FULL if full else SLIDING for full in is_full],
        "sliding_window": window_of_rows(rows, width, num_channels),
    }
