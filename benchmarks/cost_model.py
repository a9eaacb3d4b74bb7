"""The cost model against what torch counts, what a process's memory shows and what a step takes.

    python benchmarks/cost_model.py --output cost_model.json

For models of several widths, objectives and settings: FLOPs, peak memory above the model, and time of a training step
in float32. Memory is measured twice, in processes of their own: with every tensor in pages of its own, so that what is
measured is what is alive, and as a process has it, with what the allocator keeps in freed pieces. Each step is paired
with a measurement of the matrix-product peak just before it, from which its time is predicted.
"""

import ctypes
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from common import describe_machine, machine_peaks, memory_above, parser, seconds_of
from torch.utils.flop_counter import FlopCounterMode

from hf_igpt import ImageGPTConfig
from hf_igpt.configuration_igpt import FULL, SLIDING
from hf_igpt.results import write_results
from hf_igpt.training.cost import attended_pairs, executed_flops, forward_flops, matmul_peak, parameters
from hf_igpt.training.devices import planned_device
from hf_igpt.training.memory import TrainingSetting, training_memory
from hf_igpt.training.objectives import model_class


MMAP_THRESHOLD, OWN_PAGES = -3, 1 << 16  # of mallopt, in bytes


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    name: str
    fields: dict[str, Any]
    images: int
    attention: str = "sdpa"
    gradient_checkpointing: bool = False
    config: ImageGPTConfig = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "config", ImageGPTConfig(**self.fields))

    @property
    def setting(self) -> TrainingSetting:
        return TrainingSetting(
            self.images, attention=self.attention, gradient_checkpointing=self.gradient_checkpointing
        )

    def start(self) -> Callable[[], None]:
        """Builds the model and gives a function that takes one training step."""
        torch.manual_seed(0)
        model = model_class(self.config)._from_config(self.config, attn_implementation=self.attention).train()
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        tokens = torch.randint(0, self.config.num_values, (self.images, self.config.n_positions))
        masked = {"input_ids": tokens, "bool_masked_pos": torch.ones_like(tokens, dtype=torch.bool)}
        inputs = {"labels": tokens} if self.config.is_causal else masked

        def step() -> None:
            model(**inputs, skip_logits=True).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step


def _sizes(layers: int, width: int, heads: int, side: int, **others: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "image_size": side,
        **others,
    }


WINDOWS = {"layer_types": [SLIDING, SLIDING, FULL] * 2, "sliding_window": 128}
CASES = (
    Case("4 x 96, 8x8, 32 images", _sizes(4, 96, 4, 8), 32),
    Case("6 x 128, 16x16, 32 images", _sizes(6, 128, 4, 16), 32),
    Case("12 x 256, 32x32, 2 images", _sizes(12, 256, 8, 32), 2),
    Case("6 x 512, 32x32, 1 image", _sizes(6, 512, 8, 32), 1),
    Case("the same, checkpointing", _sizes(6, 512, 8, 32), 1, gradient_checkpointing=True),
    Case("the same, masked", _sizes(6, 512, 8, 32, is_causal=False), 1),
    Case("the same, windows of 4 rows", _sizes(6, 512, 8, 32, **WINDOWS), 1),
    Case("the same, eager attention", _sizes(6, 512, 8, 32), 1, attention="eager"),
    Case("2 x 1024, 32x32, 1 image", _sizes(2, 1024, 8, 32), 1),
)


def measured_memory(case: Case) -> dict[str, float]:
    """Peaks in MB above the model in the second of two steps: predicted, of live tensors, and of the process."""

    def two_steps(own_pages: bool) -> Callable[[], None]:
        if own_pages:
            ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, OWN_PAGES)
        step = case.start()
        return lambda: [step() for _ in range(2)]

    memory = training_memory(case.config, case.setting)
    return {
        "predicted": (memory.peak - memory.weights) / 1e6,
        "live": memory_above(lambda: two_steps(True)),
        "process": memory_above(lambda: two_steps(False)),
    }


def measured_time(case: Case, repeats: int) -> dict[str, list[float]]:
    """Seconds of steps, and those predicted from the peak measured just before each."""
    step = case.start()
    step()
    flops = case.images * executed_flops(case.config, case.gradient_checkpointing)
    share = planned_device("cpu", "fp32", 1.0).utilization(case.config.hidden_size)
    times: dict[str, list[float]] = {"predicted": [], "measured": [], "fraction_of_peak": []}
    for _ in range(repeats):
        peak = matmul_peak(torch.device("cpu"), torch.float32, seconds=0.2)
        seconds = seconds_of(step)
        times["predicted"].append(flops / (peak * share))
        times["measured"].append(seconds)
        times["fraction_of_peak"].append(flops / seconds / peak)
    return times


def counted_flops(case: Case) -> dict[str, int]:
    """FLOPs of a forward pass as torch counts them, and ours with the pairs that eager attention computes in vain."""
    config = case.config
    model = model_class(config)._from_config(config, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        model(labels=torch.zeros(1, config.n_positions, dtype=torch.long))
    pairs = sum(attended_pairs(config, layer) for layer in range(config.num_hidden_layers))
    unneeded = config.num_hidden_layers * config.n_positions**2 - pairs
    return {
        "counted": counter.get_total_flops(),
        "predicted": forward_flops(config) + 4 * config.hidden_size * unneeded,
    }


def _error(predicted: float, measured: float) -> float:
    return predicted / measured - 1


def main() -> None:
    options = parser(__doc__, repeats=3)
    options.add_argument("--cases", type=int, nargs="+", help="numbers of the cases, from 0; by default all")
    arguments = options.parse_args()
    cases = [CASES[number] for number in arguments.cases or range(len(CASES))]
    # First: a fork must not follow work in threads.
    memory = {}
    for case in cases:
        memory[case.name] = measured_memory(case)
        print(case.name, memory[case.name], flush=True)
    peaks = machine_peaks()
    flops = counted_flops(CASES[1])
    assert flops["counted"] == flops["predicted"], flops
    rows = []
    for case in cases:
        times, found = measured_time(case, arguments.repeats), memory[case.name]
        pairs = zip(times["predicted"], times["measured"], strict=True)
        print(case.name, times, flush=True)
        rows.append(
            {
                "name": case.name,
                "parameters": parameters(case.config),
                "flops": case.images * executed_flops(case.config, case.gradient_checkpointing),
                "megabytes": found,
                "seconds": times,
                "fraction_of_peak": statistics.median(times["fraction_of_peak"]),
                "memory_error": _error(found["predicted"], found["live"]),
                "time_error": statistics.median(_error(*pair) for pair in pairs),
            }
        )
    print(describe_machine(peaks))
    print("\n| training step | MB above the model: predicted, live, process | seconds | of peak | errors |")
    print("|---|---|---|---|---|")
    for row in rows:
        megabytes = ", ".join(f"{value:.0f}" for value in row["megabytes"].values())
        print(
            f"| {row['name']} | {megabytes} | {statistics.median(row['seconds']['measured']):.3f} "
            f"| {row['fraction_of_peak']:.2f} | {row['memory_error']:+.0%}, {row['time_error']:+.0%} |"
        )
    if arguments.output:
        metrics = {"cases": rows, "flops": flops, "machine": peaks}
        write_results(arguments.output, metrics=metrics, seeds={"seed": 0}, arguments=vars(arguments))


if __name__ == "__main__":
    main()
