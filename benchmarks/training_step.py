"""Training step: our causal head against transformers' ImageGPT with the same weights, work and outputs.

    python benchmarks/training_step.py --output training_step.json

Forward, backward and AdamW of 6 layers x 512 wide on 2 images of 1024 tokens in float32. Native runs at its own
fastest settings: default attention, no cache, no dropout. Both score all 1024 tokens. Losses and gradients are
compared first; then steps are timed in turns, and peak memory is measured in a process of its own for each.
"""

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import (
    build_native,
    build_ours,
    describe_machine,
    machine_peaks,
    median_ratio,
    memory_above,
    paired_seconds,
    parser,
)

from hf_igpt.results import write_results


def native_loss(model, tokens: torch.Tensor) -> torch.Tensor:
    """Mean over all tokens, which transformers' own `labels` cannot give: the start token takes the first place."""
    start = tokens.new_full((len(tokens), 1), model.config.vocab_size - 1)
    logits = model(input_ids=torch.cat([start, tokens[:, :-1]], dim=1), use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def our_loss(model, tokens: torch.Tensor) -> torch.Tensor:
    return model(labels=tokens).loss


def stepper(model, loss_function: Callable, tokens: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    model.train()

    def step() -> None:
        loss_function(model, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def check_equal(native, ours, tokens: torch.Tensor) -> dict[str, float]:
    losses = [native_loss(native, tokens), our_loss(ours, tokens)]
    for loss in losses:
        loss.backward()
    theirs, mine = native.transformer.wte.weight.grad, ours.transformer.wte.weight.grad
    difference = (theirs - mine).abs().max() / theirs.abs().max()
    assert torch.allclose(losses[0], losses[1], atol=1e-4), f"losses differ: {losses}"
    assert difference < 1e-3, f"gradients differ by {difference}"
    native.zero_grad()
    ours.zero_grad()
    return {"loss_native": losses[0].item(), "loss_ours": losses[1].item(), "gradient_difference": difference.item()}


def main() -> None:
    options = parser(__doc__, repeats=7)
    options.add_argument("--layers", type=int, default=6)
    options.add_argument("--width", type=int, default=512)
    options.add_argument("--heads", type=int, default=8)
    options.add_argument("--tokens", type=int, default=1024)
    options.add_argument("--batch", type=int, default=2)
    options.add_argument("--compile", action="store_true", help="also time our model compiled")
    arguments = options.parse_args()

    tokens = torch.randint(0, 512, (arguments.batch, arguments.tokens), generator=torch.Generator().manual_seed(0))
    sizes = (arguments.layers, arguments.width, arguments.heads, arguments.tokens)
    # First: a fork must not follow work in threads.
    memory = {
        "native": memory_above(lambda: _three_steps(build_native(*sizes), native_loss, tokens)),
        "ours": memory_above(lambda: _three_steps(build_ours(build_native(*sizes)), our_loss, tokens)),
    }
    peaks = machine_peaks()
    native = build_native(*sizes)
    ours = build_ours(native)
    equality = check_equal(native, ours, tokens)
    works = {"native": stepper(native, native_loss, tokens), "ours": stepper(ours, our_loss, tokens)}
    if arguments.compile:
        works["ours_compiled"] = stepper(torch.compile(build_ours(native), fullgraph=True), our_loss, tokens)
    seconds = paired_seconds(works, arguments.repeats)
    ratios = {name: median_ratio(seconds["native"], times) for name, times in seconds.items() if name != "native"}

    print(describe_machine(peaks))
    print("\n| training step | seconds (median) | times faster | peak memory above the model, MB |\n|---|---|---|---|")
    for name, times in seconds.items():
        faster = f"{ratios[name]:.2f}" if name in ratios else ""
        print(f"| {name} | {statistics.median(times):.3f} | {faster} | {memory.get(name, float('nan')):.0f} |")
    print(f"\nOurs needs {memory['ours'] / memory['native']:.2f} of native's memory.")
    if arguments.output:
        metrics = {"seconds": seconds, "times_faster": ratios, "peak_megabytes": memory, **equality, "machine": peaks}
        write_results(arguments.output, metrics=metrics, seeds={"seed": 0}, arguments=vars(arguments))


def _three_steps(model, loss_function: Callable, tokens: torch.Tensor) -> Callable[[], None]:
    step = stepper(model, loss_function, tokens)
    return lambda: [step() for _ in range(3)]


if __name__ == "__main__":
    main()
