"""The paper's sizes beside GPT-2's, counted from their configs without weights.

python benchmarks/model_sizes.py --output model-sizes.json --picture model-sizes.png
"""

from typing import Any

import torch
from common import parser
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from hf_igpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from hf_igpt.results import write_results
from hf_igpt.storage import atomic_path
from hf_igpt.training.cost import training_flops


IGPT, GPT2 = "Image GPT", "GPT-2"
# Names, and parameters as the paper has them (Chen et al. 2020, section 3.3; L and XL from its table 2).
IGPT_SIZES = {
    "igpt-s": ("iGPT-S", 76_000_000),
    "igpt-m": ("iGPT-M", 455_000_000),
    "igpt-l": ("iGPT-L", 1_362_000_000),
    "igpt-xl": ("iGPT-XL", 6_801_000_000),
}
# Layers, width and heads in the configs of gpt2, gpt2-medium, gpt2-large and gpt2-xl on the Hub; parameters as in
# Radford et al. 2019, table 2.
GPT2_SIZES = {
    "GPT-2 small": (12, 768, 12, 117_000_000),
    "GPT-2 medium": (24, 1024, 16, 345_000_000),
    "GPT-2 large": (36, 1280, 20, 762_000_000),
    "GPT-2 XL": (48, 1600, 25, 1_542_000_000),
}


def igpt_row(preset: str) -> dict[str, Any]:
    """One of the paper's sizes at 32x32 with 512 colours."""
    name, published = IGPT_SIZES[preset]
    config = ImageGPTConfig.from_preset(preset)
    with torch.device("meta"):
        model = ImageGPTForCausalImageModeling(config)
    return {"name": name, "family": IGPT, "published_parameters": published} | counted(config, model)


def gpt2_row(name: str) -> dict[str, Any]:
    """One of GPT-2's sizes with its own vocabulary and positions."""
    layers, width, heads, published = GPT2_SIZES[name]
    native = GPT2Config(n_layer=layers, n_embd=width, n_head=heads)
    with torch.device("meta"):
        model = GPT2LMHeadModel(native)
    # Its matrix products are those of an Image GPT of this size; what differs are biases, norms and what is tied.
    config = ImageGPTConfig(
        vocab_size=native.vocab_size + 1,
        n_positions=native.n_positions,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    return {"name": name, "family": GPT2, "published_parameters": published} | counted(config, model)


def counted(config: ImageGPTConfig, model: PreTrainedModel) -> dict[str, Any]:
    """Parameters by part, each once where they are shared, and FLOPs of a sequence. Both families name parts alike."""
    parts = {"blocks": 0, "vocabulary": 0, "positions": 0, "final norm": 0}
    for name, parameter in model.named_parameters():
        is_table = "wte" in name or "lm_head" in name
        part = "vocabulary" if is_table else "positions" if "wpe" in name else "final norm"
        parts["blocks" if ".h." in name else part] += parameter.numel()
    return {
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "values": config.num_values,
        "positions": config.n_positions,
        "parameters": model.num_parameters(),
        "parameters_by_part": parts,
        "biases": sum(each.numel() for name, each in model.named_parameters() if name.endswith("bias")),
        "training_flops_per_sequence": training_flops(config),
    }


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Depth against width, and all parameters against what an image or text of as many tokens costs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    shape, size = figure.subplots(1, 2)
    panels = {
        shape: ("width", "layers", lambda row: (row["width"], row["layers"])),
        size: (
            "parameters",
            "FLOP for 1,024 tokens, forward and backward",
            lambda row: (row["parameters"], row["training_flops_per_sequence"]),
        ),
    }
    for axes, (across, up, point) in panels.items():
        for family, marker, left, below in ((IGPT, "o", -8, 4), (GPT2, "s", 8, -10)):
            found = [row for row in rows if row["family"] == family]
            axes.plot(*zip(*map(point, found), strict=True), marker + "-", label=family)
            side = "right" if left < 0 else "left"
            for row in found:
                name = row["name"].removeprefix("iGPT-").removeprefix("GPT-2 ")
                axes.annotate(name, point(row), xytext=(left, below), textcoords="offset points", ha=side)
        axes.set(xlabel=across, ylabel=up)
        axes.margins(x=0.15, y=0.1)
        axes.grid(alpha=0.3)
        axes.legend()
    size.set(xscale="log", yscale="log")
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--picture", help="plot to write")
    arguments = options.parse_args()
    rows = [igpt_row(preset) for preset in IGPT_SIZES] + [gpt2_row(name) for name in GPT2_SIZES]
    for row in rows:
        print(f"{row['name']:14}{row['parameters']:15,}{row['training_flops_per_sequence']:12.3g} FLOP")
    if arguments.picture:
        draw(rows, arguments.picture)
    if arguments.output:
        write_results(arguments.output, metrics={"sizes": rows}, arguments={}, seeds={})


if __name__ == "__main__":
    main()
