"""Sampling: our causal head against transformers' ImageGPT, both through `generate()`, with the same weights.

    python benchmarks/sampling.py --output sampling.json

16 images of 1024 tokens, 8 layers x 256 wide, temperature 1 over all values, in float32, after a warm-up of a few
tokens. Greedy decoding of the first tokens is compared first, token by token.
"""

import statistics
from collections.abc import Callable

import torch
from common import build_native, build_ours, describe_machine, machine_peaks, median_ratio, paired_seconds, parser
from transformers import GenerationConfig

from hf_igpt.results import write_results


def generator(model, batch: int, length: int, **options) -> Callable[[], torch.Tensor]:
    start = torch.full((batch, 1), model.config.vocab_size - 1)
    config = GenerationConfig(
        max_length=length + 1, min_length=length + 1, top_k=0, top_p=1.0, pad_token_id=0, **options
    )
    model.eval()
    mask = torch.ones_like(start)
    return lambda: model.generate(start, attention_mask=mask, generation_config=config)


def main() -> None:
    options = parser(__doc__, repeats=3)
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--width", type=int, default=256)
    options.add_argument("--heads", type=int, default=8)
    options.add_argument("--tokens", type=int, default=1024)
    options.add_argument("--batch", type=int, default=16)
    arguments = options.parse_args()

    native = build_native(arguments.layers, arguments.width, arguments.heads, arguments.tokens)
    ours = build_ours(native)
    models = {"native": native, "ours": ours}
    greedy = [generator(model, 2, min(64, arguments.tokens), do_sample=False)() for model in models.values()]
    assert torch.equal(*greedy), "greedy tokens differ"
    peaks = machine_peaks()
    works = {
        name: generator(model, arguments.batch, arguments.tokens, do_sample=True, temperature=1.0)
        for name, model in models.items()
    }
    for model in models.values():
        generator(model, arguments.batch, min(16, arguments.tokens), do_sample=True)()
    seconds = paired_seconds(works, arguments.repeats, warm_up=0)
    faster = median_ratio(seconds["native"], seconds["ours"])

    print(describe_machine(peaks))
    print(f"\n| {arguments.batch} x {arguments.tokens} tokens | ms a step (median) | times faster |\n|---|---|---|")
    for name, times in seconds.items():
        ratio = f"{faster:.2f}" if name == "ours" else ""
        print(f"| {name} | {1000 * statistics.median(times) / arguments.tokens:.1f} | {ratio} |")
    if arguments.output:
        metrics = {"seconds": seconds, "times_faster": faster, "machine": peaks}
        write_results(arguments.output, metrics=metrics, seeds={"seed": 0}, arguments=vars(arguments))


if __name__ == "__main__":
    main()
