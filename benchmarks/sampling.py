"""Sampling: our causal head against transformers' ImageGPT with the same weights, and against the memory's speed.

    python benchmarks/sampling.py --output sampling.json
    python benchmarks/sampling.py --device cuda --layers 24 --width 512 --batch 256 --output sampling-gpu.json

By default 16 images of 1024 tokens, 8 layers x 256 wide, temperature 1 over all values, in float32 on a CPU and in
bfloat16 on a GPU; whole images, then images of which the upper half is given. Before that greedy decoding of the first
tokens is compared, token by token, in float32. The bound reads as many bytes as a step must: the weights, and keys and
values of the tokens so far, at moments spread over the drawing, for the processor's own caches hold only those of the
first steps. On a CPU both go through `generate()`; on a GPU ours draws as `hf_igpt.generation.sample` does, with a
compiled step and an own random state for every image, after a warm-up of one whole drawing.
"""

import statistics
from collections.abc import Callable

import torch
from common import build_native, build_ours, describe_machine, machine_peaks, median_ratio, paired_seconds, parser
from transformers import GenerationConfig

from hf_igpt.completion_igpt import draw_hidden
from hf_igpt.results import write_results


# Steps, spread over the drawing, whose bytes are read for the bound.
READINGS = 20


def generator(model, batch: int, length: int, given: int = 0, **options) -> Callable[[], torch.Tensor]:
    """Draws up to `length` tokens through `generate()`, the first of them given."""
    prompt = torch.cat([torch.full((batch, 1), model.config.vocab_size - 1), given_tokens(batch, given)], dim=1)
    prompt = prompt.to(model.device)
    config = GenerationConfig(
        max_length=length + 1, min_length=length + 1, top_k=0, top_p=1.0, pad_token_id=0, **options
    )
    model.eval()
    mask = torch.ones_like(prompt)
    # On a GPU: waits for it.
    return lambda: model.generate(prompt, attention_mask=mask, generation_config=config).cpu()


def compiled(model, batch: int, length: int, given: int) -> Callable[[], torch.Tensor]:
    """The same as `hf_igpt.generation.sample` does it on a GPU."""
    tokens = torch.zeros(batch, length, dtype=torch.long)
    tokens[:, :given] = given_tokens(batch, given)
    hidden = (torch.arange(length) >= given).expand(batch, -1)
    caches: dict = {}
    return lambda: draw_hidden(model, tokens, hidden, list(range(batch)), caches=caches).cpu()


def given_tokens(batch: int, given: int) -> torch.Tensor:
    return torch.randint(512, (batch, given), generator=torch.Generator().manual_seed(0))


def bytes_of_steps(model, batch: int, length: int, given: int) -> list[int]:
    """Weights, keys and values that steps spread over the drawing read; embeddings of single tokens hardly count."""
    embeddings = sum(table.weight.numel() for table in (model.transformer.wte, model.transformer.wpe))
    weights = sum(parameter.numel() for parameter in model.parameters()) - embeddings
    config = model.config
    token = 2 * config.num_hidden_layers * config.hidden_size * batch
    seen = [given + round((length - given) * (number + 0.5) / READINGS) for number in range(READINGS)]
    return [(weights + token * tokens) * model.dtype.itemsize for tokens in seen]


def reader(device: torch.device, sizes: list[int]) -> Callable[[], object]:
    """Reads so many bytes, the most first: whatever of the others the processor's caches can hold is there."""
    block = torch.ones(max(sizes) // 4, device=device)
    parts = [block[: size // 4] for size in sorted(sizes, reverse=True)]
    return lambda: [part.sum() for part in parts][-1].item()


def measure(models: dict, batch: int, length: int, given: int, repeats: int) -> dict[str, object]:
    """Milliseconds a step of all, in turns, and the ratios."""
    ours, steps = models["ours"], length - given
    works = {name: generator(model, batch, length, given, do_sample=True) for name, model in models.items()}
    if ours.device.type == "cuda":
        works["ours"] = compiled(ours, batch, length, given)
    sizes = bytes_of_steps(ours, batch, length, given)
    works["bound"] = reader(ours.device, sizes)
    seconds = paired_seconds(works, repeats, warm_up=int(ours.device.type == "cuda"))
    counts = {"native": steps, "ours": steps, "bound": READINGS}
    return {
        "given": given,
        "megabytes_a_step": statistics.mean(sizes) / 1e6,
        "seconds": seconds,
        "milliseconds_a_step": {n: 1000 * statistics.median(times) / counts[n] for n, times in seconds.items()},
        "times_faster": median_ratio(seconds["native"], seconds["ours"]),
        "times_the_bound": median_ratio(seconds["ours"], seconds["bound"]) * READINGS / steps,
    }


def main() -> None:
    options = parser(__doc__, repeats=3)
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--width", type=int, default=256)
    options.add_argument("--heads", type=int, default=8)
    options.add_argument("--tokens", type=int, default=1024)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--given", type=int, nargs="+", help="tokens that are given (default 0 and half of them)")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--dtype", choices=("float32", "bfloat16"), help="default float32, on a GPU bfloat16")
    arguments = options.parse_args()
    device = torch.device(arguments.device)
    dtype = getattr(torch, arguments.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    given = [0, arguments.tokens // 2] if arguments.given is None else arguments.given

    native = build_native(arguments.layers, arguments.width, arguments.heads, arguments.tokens)
    models = {"native": native.to(device), "ours": build_ours(native).to(device)}
    greedy = [generator(model, 2, min(64, arguments.tokens), do_sample=False)() for model in models.values()]
    assert torch.equal(*greedy), "greedy tokens differ"
    models = {name: model.to(dtype) for name, model in models.items()}
    peaks = machine_peaks()
    for model in models.values():
        generator(model, arguments.batch, min(16, arguments.tokens), do_sample=True)()
    results = [measure(models, arguments.batch, arguments.tokens, number, arguments.repeats) for number in given]

    print(describe_machine(peaks) if device.type == "cpu" else torch.cuda.get_device_name(device))
    print(f"\n{arguments.batch} images of {arguments.tokens} tokens, {dtype}, medians\n")
    print("| given | native, ms a step | ours | bound | times faster | times the bound |\n|---|---|---|---|---|---|")
    for result in results:
        times = " | ".join(f"{value:.1f}" for value in result["milliseconds_a_step"].values())
        print(f"| {result['given']} | {times} | {result['times_faster']:.2f} | {result['times_the_bound']:.2f} |")
    if arguments.output:
        metrics = {"machine": peaks, "rows": results, "times_faster": results[0]["times_faster"]}
        write_results(arguments.output, metrics=metrics, seeds={"seed": 0}, arguments=vars(arguments))


if __name__ == "__main__":
    main()
