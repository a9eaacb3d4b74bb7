"""Pixels forecast and checked several a pass, against one pass for every pixel: passes, time, and images that differ.

    python benchmarks/parallel_sampling.py --checkpoint outputs/digits/model outputs/cifar10-cpu/model --cpu_threads 1

Drawn from the same seeds, 1 and 16 images at once, by two loops that take a pass for every pixel: the one of
transformers, and the one for CPUs that `generate` takes. What a model gives depends on how sure it is: untrained ones
say nothing. On one CPU thread, seconds of the processor count, which other programs disturb less; else of the clock.

Then many images are drawn again to count those that differ: in float32, and in bfloat16, where rounding is coarse. In
the row for comparison every pixel has its own pass too, and only the number of images at once is another one.

Last, what a pass over several pixels costs a model that nobody here could train, 12 layers x 512 wide: in steps of the
loop that takes one pixel at a time. Forecasts pay where a pass finds more pixels than it costs steps.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import describe_machine, machine_peaks, median_ratio, paired_seconds, parser
from transformers import GenerationMixin

from hf_igpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from hf_igpt.commands.checkpoints import load_checkpoint
from hf_igpt.completion_igpt import image_seeds
from hf_igpt.parallel_decoding_igpt import parallel_passes
from hf_igpt.results import write_results


ONE_BY_ONE = {"transformers' loop": {"custom_generate": GenerationMixin._sample}, "one by one": {}}
SETTINGS = [
    ("fixed_point", 4),
    ("fixed_point", 8),
    ("fixed_point", 16),
    ("fixed_point", 32),
    ("above", 8),
    ("shallow_exit", 4),
]


def sources(model, images: range) -> list[torch.Generator]:
    seeds = image_seeds(0, images, [0] * len(images))
    return [torch.Generator(model.device).manual_seed(seed) for seed in seeds]


def drawer(model, num_images: int, batch: int, **options) -> Callable[[], torch.Tensor]:
    """Draws images 0 to `num_images`, some at once."""
    start = torch.full((batch, 1), model.config.start_token_id, device=model.device)

    def draw() -> torch.Tensor:
        groups = (range(first, first + batch) for first in range(0, num_images, batch))
        drawn = [model.generate(start, generator=sources(model, group), **options) for group in groups]
        return torch.cat(drawn)

    return draw


def counted(model, num_images: int, batch: int, forecast: str, window: int) -> tuple[torch.Tensor, float]:
    """The same images, and the passes of the model, on average over the batches."""
    start, counts, drawn = torch.full((batch, 1), model.config.start_token_id, device=model.device), [], []
    for group in (range(first, first + batch) for first in range(0, num_images, batch)):
        passes = list(parallel_passes(model, start, window, forecast, generator=sources(model, group)))
        counts.append(len(passes))
        drawn.append(passes[-1][0])
    return torch.cat(drawn), statistics.mean(counts)


def compare(model, batch: int, num_images: int, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Passes and seconds of every setting."""
    options: dict[str, dict[str, Any]] = dict(ONE_BY_ONE)
    for forecast, window in SETTINGS:
        options[f"{forecast}, {window}"] = {"forecast": forecast, "parallel_window": window}
    works = {name: drawer(model, num_images, batch, **more) for name, more in options.items()}
    expected, rows = works["one by one"](), {}
    for name, more in options.items():
        images, passes = works[name]() if name in ONE_BY_ONE else None, float(model.config.n_positions)
        if images is None:
            images, passes = counted(model, num_images, batch, more["forecast"], more["parallel_window"])
        rows[name] = {"passes": passes, "different_images": int((images != expected).any(dim=1).sum())}
    seconds = paired_seconds(works, repeats, warm_up=0, clock=clock)
    for name, row in rows.items():
        row["seconds_per_image"] = statistics.median(seconds[name]) / num_images
        row["times_faster"] = {other: median_ratio(seconds[other], seconds[name]) for other in ONE_BY_ONE}
    return rows


@torch.no_grad()
def entropy(model, images: torch.Tensor) -> float:
    """Nats per token of the model's own images."""
    return float(model(labels=images[:, 1:]).loss)


def rounding(model, num_images: int, batch: int) -> list[dict[str, Any]]:
    """How many of many images differ from those with a pass for every pixel; fewer in bfloat16, which is slow."""
    found = []
    for dtype, count in ((torch.float32, num_images), (torch.bfloat16, num_images // 5)):
        model, batch = model.to(dtype), min(batch, count)
        expected = drawer(model, count, batch)()
        others = {
            "another batch size": drawer(model, count, batch // 4)(),
            "several pixels a pass": drawer(model, count, batch, parallel_window=8)(),
        }
        different = {name: int((images != expected).any(dim=1).sum()) for name, images in others.items()}
        found.append({"dtype": str(dtype).split(".")[1], "images": count, "different": different})
    return found


def pass_costs(device: str, repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of a pass over some pixels in those of a step, for one image; the weights are random."""
    torch.manual_seed(0)
    config = ImageGPTConfig(hidden_size=512, num_hidden_layers=12, num_attention_heads=8)
    model = ImageGPTForCausalImageModeling(config).eval().to(device)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    start, length = torch.full((1, 1), config.start_token_id, device=device), 33
    works = {"1": drawer(model, 1, 1, max_length=length)}
    costs = {"1": length - 1}
    for window in (4, 8, 16):
        # Copies are hardly ever right here: about a pass for every pixel.
        options = {"forecast": "above", "max_length": length}
        works[str(window)] = drawer(model, 1, 1, parallel_window=window, **options)
        costs[str(window)] = sum(
            1 for _ in parallel_passes(model, start, window, generator=sources(model, range(1)), **options)
        )
    seconds = paired_seconds(works, repeats, clock=clock)
    each = {window: statistics.median(times) / costs[window] for window, times in seconds.items()}
    return {window: value / each["1"] for window, value in each.items()}


def main() -> None:
    options = parser(__doc__, repeats=3)
    options.add_argument("--checkpoint", nargs="+", required=True, help="next-pixel checkpoints, trained")
    options.add_argument("--device", default="cpu", help="(default cpu)")
    options.add_argument("--cpu_threads", type=int, help="threads (default: all cores)")
    options.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="images at once (default 1 and 16)")
    options.add_argument("--images", type=int, default=1000, help="images drawn to count those that differ")
    arguments = options.parse_args()
    if arguments.cpu_threads:
        torch.set_num_threads(arguments.cpu_threads)
    is_one_thread = arguments.device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if is_one_thread else time.perf_counter

    peaks = machine_peaks()
    print(describe_machine(peaks), flush=True)
    models = {}
    for checkpoint in arguments.checkpoint:
        model, _, digest = load_checkpoint(checkpoint)
        model = model.to(arguments.device).eval()
        batches = {
            str(batch): compare(model, batch, max(batch, 4), arguments.repeats, clock) for batch in arguments.batch
        }
        for batch, rows in batches.items():
            print(f"\n{checkpoint}, {batch} at once")
            for name, row in rows.items():
                ratios = "  ".join(f"{ratio:5.2f}" for ratio in row["times_faster"].values())
                print(f"{name:20}{row['passes']:8.1f} passes  {ratios} times faster", flush=True)
        config = model.config
        models[checkpoint] = {
            "model_sha256": digest,
            "parameters": model.num_parameters(),
            "layers": config.num_hidden_layers,
            "width": config.hidden_size,
            "tokens": config.n_positions,
            "values": config.num_values,
            "entropy_nats_per_token": entropy(model, drawer(model, 16, 16)()),
            "batches": batches,
            "rounding": rounding(model, arguments.images, min(100, arguments.images)),
        }
        print(models[checkpoint]["rounding"])
    costs = pass_costs(arguments.device, arguments.repeats, clock)
    print({window: round(cost, 2) for window, cost in costs.items()})
    if arguments.output:
        metrics = {"models": models, "pass_costs": costs, "machine": peaks, "cpu_threads": torch.get_num_threads()}
        metrics["clock"] = "processor" if is_one_thread else "wall"
        write_results(arguments.output, metrics=metrics, seeds={"seed": 0}, arguments=vars(arguments))


if __name__ == "__main__":
    main()
