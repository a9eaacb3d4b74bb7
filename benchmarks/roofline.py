"""Measured against the limit of the machine: a training step, features, sampling, quantization.

    python benchmarks/roofline.py --output roofline.json
    python benchmarks/roofline.py --device cuda --dtype bf16 --preset igpt-s --batch 16 --output roofline.json

First the machine's own peaks: square matrix products, reading memory, and torch's attention kernel at the shapes of
the training step. The limit of a piece of work is what the same products, the same attention and the same bytes would
take at those peaks and nothing else; sampling must read its weights and its cache once a step, and quantization must
read the pixels of its images. Then torch's profiler says where the time goes.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import describe_machine, parser
from PIL import Image
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from hf_igpt import IGPTImageProcessor, ImageGPTConfig, ImageGPTForCausalImageModeling
from hf_igpt.evaluation import extract_features
from hf_igpt.results import write_results
from hf_igpt.training.cost import forward_flops, matmul_peak, training_flops


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Parameters, gradients and both moments are read, the first and the last two written.
ADAM_PASSES = 7
PIXELS = 32
# Operations by group; whatever else torch runs moves or transforms tensors element by element.
GROUPS = {
    "products": ("aten::mm", "aten::addmm", "aten::_addmm_activation", "aten::linear", "aten::matmul"),
    "attention": ("attention", "aten::bmm", "aten::baddbmm"),
    "optimizer": ("_fused_adam", "Optimizer."),
}
OTHERS, OVERHEAD = "elementwise, norms and copies", "Python and dispatch"


class Machine:
    """
    A device at a precision and its measured peaks.

    Args:
        config: of the training step, whose shapes the attention kernel is measured at.
        batch: images of that step.
    """

    def __init__(self, device: str, dtype: str, config: ImageGPTConfig, batch: int):
        self.device, self.dtype = torch.device(device), DTYPES[dtype]
        self.products = matmul_peak(self.device, self.dtype, seconds=1.0)
        self.bandwidth = self._bandwidth()
        heads, tokens = config.num_attention_heads, config.n_positions
        shape = (batch, heads, tokens, config.hidden_size // heads)
        query = torch.randn(shape, device=self.device, dtype=self.dtype, requires_grad=True)

        def attend() -> torch.Tensor:
            return F.scaled_dot_product_attention(query, query, query, is_causal=True)

        flops = batch * attention_flops(config) / config.num_hidden_layers
        with torch.no_grad():
            self.attention = flops / min(self.seconds(attend, 5))
        self.attention_and_backward = 3 * flops / min(self.seconds(lambda: attend().sum().backward(), 5))

    def _bandwidth(self) -> float:
        block = torch.ones(32 * 1024 * 1024, device=self.device)
        return block.nbytes / min(self.seconds(block.sum, 5))

    def seconds(self, work: Callable[[], object], repeats: int) -> list[float]:
        """Seconds of each of so many runs, after one more."""
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return times[1:]

    def shares(self, work: Callable[[], object]) -> dict[str, float]:
        """Which part of its time a piece of work spends in each group; what no operation takes is overhead."""
        is_gpu = self.device.type == "cuda"
        work()
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]) as profiler:
            start = time.perf_counter()
            work()
            if is_gpu:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        shares = dict.fromkeys((*GROUPS, OTHERS), 0.0)
        for event in profiler.key_averages():
            # Kernels are also listed by themselves.
            if event.device_type == DeviceType.CPU and (group := group_of(event.key)) is not None:
                time_in = event.self_device_time_total if is_gpu else event.self_cpu_time_total
                shares[group] += time_in / 1e6 / seconds
        return shares | {OVERHEAD: max(0.0, 1 - sum(shares.values()))}

    def peaks(self) -> dict[str, float]:
        return {
            "products_gflops": self.products / 1e9,
            "attention_gflops": self.attention / 1e9,
            "attention_and_backward_gflops": self.attention_and_backward / 1e9,
            "memory_gb_per_second": self.bandwidth / 1e9,
        }


def attention_flops(config: ImageGPTConfig) -> int:
    """Of one image, forward: the half of the score matrix that a causal model needs."""
    tokens = config.n_positions
    return 4 * config.num_hidden_layers * (tokens * (tokens + 1) // 2) * config.hidden_size


def group_of(operation: str) -> str | None:
    """The group of one of the profiler's names; None for what is no operation on tensors."""
    for group, names in GROUPS.items():
        if any(operation == name if name.startswith("aten::") else name in operation for name in names):
            return group
    return OTHERS if operation.startswith("aten::") else None


def random_model(config: ImageGPTConfig, machine: Machine) -> ImageGPTForCausalImageModeling:
    torch.manual_seed(0)
    model = ImageGPTForCausalImageModeling(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.to(machine.device)


def random_tokens(config: ImageGPTConfig, images: int) -> torch.Tensor:
    return torch.randint(
        0, config.num_values, (images, config.n_positions), generator=torch.Generator().manual_seed(0)
    )


def row(machine: Machine, limits: dict[str, float], times: list[float], profiled: Callable | None) -> dict[str, Any]:
    limit = sum(limits.values())
    return {
        "seconds": times,
        "limit_seconds": limit,
        "limits": limits,
        "fraction_of_limit": limit / statistics.median(times),
        "shares": None if profiled is None else machine.shares(profiled),
    }


def training_row(machine: Machine, config: ImageGPTConfig, batch: int, repeats: int) -> dict[str, Any]:
    """Forward, backward and AdamW, as Trainer runs them."""
    model = random_model(config, machine).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    tokens = random_tokens(config, batch).to(machine.device)

    def step() -> None:
        with torch.autocast(machine.device.type, machine.dtype, enabled=machine.dtype != torch.float32):
            loss = model(labels=tokens, skip_logits=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    attention = 3 * batch * attention_flops(config)
    flops = batch * training_flops(config)
    limits = {
        "products": (flops - attention) / machine.products,
        "attention": attention / machine.attention_and_backward,
        "optimizer": ADAM_PASSES * 4 * model.num_parameters() / machine.bandwidth,
    }
    result = row(machine, limits, machine.seconds(step, repeats), step)
    median = statistics.median(result["seconds"])
    return result | {"flops": flops, "fraction_of_matmul_peak": flops / median / machine.products}


def features_row(machine: Machine, config: ImageGPTConfig, images: int, repeats: int) -> dict[str, Any]:
    """Pooled features of every layer, for probes."""
    model = random_model(config, machine).to(machine.dtype).eval()
    tokens = random_tokens(config, images).numpy()
    attention = images * attention_flops(config)
    head = 2 * images * config.n_positions * config.hidden_size * config.num_values
    limits = {
        "products": (images * forward_flops(config) - attention - head) / machine.products,
        "attention": attention / machine.attention,
    }

    def extract() -> None:
        extract_features(model, tokens)

    return row(machine, limits, machine.seconds(extract, repeats), extract)


def sampling_row(machine: Machine, config: ImageGPTConfig, images: int) -> dict[str, Any]:
    """Whole images at temperature 1 through `generate()`; the profile is of images of 64 tokens."""
    model, small = (
        random_model(ImageGPTConfig(**{**config.to_dict(), "image_size": size}), machine).to(machine.dtype).eval()
        for size in (config.image_size, 8)
    )
    draw(small, images)  # warm
    start = time.perf_counter()
    draw(model, images)
    times = [time.perf_counter() - start]
    # Each step reads all matrices, and keys and values of the tokens so far.
    matrices = sum(p.numel() for name, p in model.named_parameters() if "wte" not in name and "wpe" not in name)
    tokens, size = config.n_positions, machine.dtype.itemsize
    cached = 2 * config.num_hidden_layers * config.hidden_size * images * (tokens * (tokens + 1) // 2)
    limits = {
        "weights": tokens * matrices * size / machine.bandwidth,
        "keys and values": cached * size / machine.bandwidth,
    }
    # A small model on many images is limited by its products, done while the weights are read.
    limits["weights"] = max(limits["weights"], 2 * tokens * images * matrices / machine.products)
    return row(machine, limits, times, lambda: draw(small, images))


def draw(model: ImageGPTForCausalImageModeling, images: int) -> torch.Tensor:
    start = torch.full((images, 1), model.config.start_token_id, device=model.device)
    with torch.inference_mode():
        tokens = model.generate(start, attention_mask=torch.ones_like(start))
    assert tokens.shape == (images, model.config.n_positions + 1), tokens.shape
    return tokens


def quantization_row(machine: Machine, images: int, repeats: int) -> dict[str, Any]:
    """The processor, warm, on images of random pixels; on the CPU whatever the device."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (images, PIXELS, PIXELS, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one) for one in pixels]
    processor = IGPTImageProcessor(
        size={"height": PIXELS, "width": PIXELS}, palette=generator.uniform(0, 255, (512, 3))
    )
    reading = min(machine.seconds(lambda: [np.asarray(picture) for picture in pictures], repeats))
    times = machine.seconds(lambda: processor(pictures, return_tensors="np"), repeats)
    return row(machine, {"reading pixels": reading}, times, None)


def main() -> None:
    options = parser(__doc__, repeats=5)
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--dtype", choices=DTYPES, default="fp32")
    options.add_argument("--preset", help="a size of the paper for all of it")
    options.add_argument("--side", type=int, default=32, help="of the images in tokens (default 32)")
    options.add_argument("--batch", type=int, default=2, help="images of the training step (default 2)")
    options.add_argument("--images", type=int, default=16, help="images drawn at once (default 16)")
    options.add_argument("--feature_images", type=int, default=8, help="images whose features are made (default 8)")
    arguments = options.parse_args()

    def config_of(layers: int, width: int) -> ImageGPTConfig:
        if arguments.preset:
            return ImageGPTConfig.from_preset(arguments.preset, image_size=arguments.side)
        return ImageGPTConfig(num_hidden_layers=layers, hidden_size=width, image_size=arguments.side)

    config, probed, sampled = config_of(6, 512), config_of(12, 512), config_of(8, 256)
    machine = Machine(arguments.device, arguments.dtype, config, arguments.batch)
    rows = {
        f"training step, {named(config)}, batch {arguments.batch}": training_row(
            machine, config, arguments.batch, arguments.repeats
        ),
        f"features of all layers, {named(probed)}, {arguments.feature_images} images": features_row(
            machine, probed, arguments.feature_images, arguments.repeats
        ),
        f"sampling, {named(sampled)}, {arguments.images} images": sampling_row(machine, sampled, arguments.images),
        "1,000 images 32x32 to tokens": quantization_row(machine, 1000, arguments.repeats),
    }

    peaks = machine.peaks()
    print(describe_machine({"matmul_gflops": machine.products / 1e9, "memory_gb_per_second": machine.bandwidth / 1e9}))
    print("; ".join(f"{name} {value:,.1f}" for name, value in peaks.items()))
    print("\n| work | seconds | limit | of the limit | where the time goes |\n|---|---|---|---|---|")
    for name, found in rows.items():
        shares = ", ".join(f"{group} {100 * share:.0f} %" for group, share in (found["shares"] or {}).items())
        print(
            f"| {name} | {statistics.median(found['seconds']):.3f} | {found['limit_seconds']:.3f} "
            f"| {100 * found['fraction_of_limit']:.0f} % | {shares} |"
        )
    if arguments.output:
        metrics = {"rows": rows, "machine": peaks}
        write_results(arguments.output, metrics=metrics, seeds={"seed": 0}, arguments=vars(arguments))


def named(config: ImageGPTConfig) -> str:
    return f"{config.num_hidden_layers} x {config.hidden_size}, {config.n_positions} tokens"


if __name__ == "__main__":
    main()
