"""Training step with windows of attention against full attention, and both against a window by a T x T mask.

    python benchmarks/windowed_attention.py --output windowed_attention.json

Forward and backward of 3 blocks, 256 wide, on one image of 32x32 and one of 64x64 tokens in float32. Windows reach 4
rows back. "every third full" has one block of three with full attention. "mask" is what sdpa computes where the window
is a mask over all pairs, which is what transformers' models do; it has windows in every block, and must give the same
loss. Runs in turns; the ratios are medians of pairs.
"""

import statistics
from collections.abc import Callable

import torch
from common import describe_machine, machine_peaks, median_ratio, paired_seconds, parser

from hf_igpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from hf_igpt.results import write_results
from hf_igpt.training.attention_windows import attention_fields


ROWS = 4
ATTENTION = {
    "full": (None, 0),
    "every third full": (ROWS, 3),
    "windows": (ROWS, 0),
    "windows by a mask": (ROWS, 0),
}


def build(side: int, rows: int | None, every: int) -> ImageGPTForCausalImageModeling:
    torch.manual_seed(0)
    config = ImageGPTConfig(
        image_size=side,
        hidden_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        **attention_fields(rows, every, 3, (side, side)),
    )
    model = ImageGPTForCausalImageModeling(config).train()
    torch.nn.init.normal_(model.lm_head.weight, std=0.02)
    return model


def window_mask(length: int, window: int) -> dict[str, torch.Tensor]:
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return {"sliding_attention": ((distance >= 0) & (distance < window))[None, None]}


def measure(side: int, repeats: int) -> dict[str, dict[str, float]]:
    tokens = torch.randint(0, 512, (1, side * side), generator=torch.Generator().manual_seed(0))
    models = {name: build(side, *options) for name, options in ATTENTION.items()}
    mask = window_mask(side * side, ROWS * side)

    def loss_of(name: str) -> torch.Tensor:
        model = models[name]
        if name != "windows by a mask":
            return model(labels=tokens).loss
        # What the head does, with a mask for the backbone.
        hidden = model.transformer.encode(tokens, attention_mask=mask).last_hidden_state
        return torch.nn.functional.cross_entropy(model.lm_head(hidden).flatten(0, 1), tokens.flatten())

    def step(name: str) -> Callable[[], None]:
        def run() -> None:
            loss_of(name).backward()
            models[name].zero_grad()

        return run

    with torch.no_grad():
        torch.testing.assert_close(loss_of("windows"), loss_of("windows by a mask"), atol=1e-4, rtol=0)
    seconds = paired_seconds({name: step(name) for name in models}, repeats)
    return {
        name: {
            "seconds": statistics.median(taken),
            "times_faster_than_full": median_ratio(seconds["full"], taken),
        }
        for name, taken in seconds.items()
    }


def main() -> None:
    arguments = parser(__doc__, repeats=5).parse_args()
    peaks = machine_peaks()
    print(describe_machine(peaks))
    steps = {}
    for side in (32, 64):
        steps[f"{side}x{side}"] = measure(side, arguments.repeats)
        for name, row in steps[f"{side}x{side}"].items():
            print(f"{side}x{side} {name:20}{row['seconds']:9.3f} s{row['times_faster_than_full']:7.2f} times faster")
    if arguments.output:
        write_results(
            arguments.output, metrics={"steps": steps, "machine": peaks}, arguments=vars(arguments), seeds={"seed": 0}
        )


if __name__ == "__main__":
    main()
