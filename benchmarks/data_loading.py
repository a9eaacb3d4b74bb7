"""The data loader alone, without a model: images a second with augmentation, masks and workers.

    python benchmarks/data_loading.py --output data_loading.json

Tokens of 32x32 images lie in an Arrow file, as `tokenize_dataset` leaves them. Batches are checked against single
reads first. The rates are set beside the rate at which a model of the recipe cifar10 trains on this machine, and
beside what a GPU would need for it, from its data sheet and a fraction of it that training reaches.
"""

import itertools
import tempfile
import time

import numpy as np
import pyarrow as pa
import torch
from common import describe_machine, machine_peaks, parser
from datasets import Dataset, load_from_disk
from torch.utils.data import DataLoader

from hf_igpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from hf_igpt.data.loading import EpochSampler, MaskedTokenCollator, TokenCollator, TokenDataset
from hf_igpt.data.masking import PAPER_RATE, UNIFORM, Masking
from hf_igpt.results import write_results
from hf_igpt.training.cost import training_flops


VALUES = 512


def stored_tokens(folder: str, images: int, side: int) -> Dataset:
    tokens = np.random.default_rng(0).integers(0, VALUES, images * side * side, dtype=np.uint16)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(tokens), side * side)
    Dataset(pa.table({"input_ids": rows})).save_to_disk(folder)
    return load_from_disk(folder)


def make_loader(tokens: Dataset, side: int, batch: int, augment: str, masks: float | str | None, workers: int):
    dataset = TokenDataset(tokens, num_values=VALUES, grid=(side, side), augment=augment)
    collator = TokenCollator(VALUES, side * side)
    if masks is not None:
        collator = MaskedTokenCollator(VALUES, side * side, masking=Masking(side * side, masks))
    sampler = EpochSampler(len(dataset), batch)
    return DataLoader(dataset, batch, sampler=sampler, collate_fn=collator, num_workers=workers)


def check_against_single_reads(tokens: Dataset, side: int) -> None:
    """A batch is what reading its images one by one gives."""
    for augment, masks in itertools.product(("none", "crop_flip"), (None, UNIFORM)):
        loader = make_loader(tokens, side, 8, augment, masks, workers=0)
        keys = list(itertools.islice(loader.sampler, 8))
        alone = [loader.collate_fn([loader.dataset[key]]) for key in keys]
        for name, whole in next(iter(loader)).items():
            assert torch.equal(whole, torch.cat([one[name] for one in alone])), name


def images_per_second(loader: DataLoader, seconds: float) -> float:
    """Over whole epochs until the time is over, without the time that workers take to start."""
    batches = (batch for epoch in itertools.count() for batch in _epoch(loader, epoch))
    for _ in range(8):
        next(batches)
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        images += len(next(batches)["labels"])
    return images / (time.perf_counter() - start)


def _epoch(loader: DataLoader, epoch: int):
    loader.sampler.set_epoch(epoch)
    return iter(loader)


def model_images_per_second(config: ImageGPTConfig, batch: int, seconds: float) -> float:
    model = ImageGPTForCausalImageModeling(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(0, VALUES, (batch, config.n_positions))

    def step() -> None:
        model(labels=tokens, skip_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step()
        images += batch
    return images / (time.perf_counter() - start)


def main() -> None:
    options = parser(__doc__, repeats=3)
    options.add_argument("--images", type=int, default=20000)
    options.add_argument("--side", type=int, default=32)
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    options.add_argument("--seconds", type=float, default=1.5, help="of each measurement (default 1.5)")
    options.add_argument("--gpu_tflops", type=float, default=989, help="a GPU's bf16 peak (default: an H100's, 989)")
    options.add_argument("--gpu_fraction", type=float, default=0.5, help="of it that training reaches (default 0.5)")
    arguments = options.parse_args()

    config = ImageGPTConfig(image_size=arguments.side, hidden_size=256, num_hidden_layers=12, num_attention_heads=8)
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        tokens = stored_tokens(folder, arguments.images, arguments.side)
        check_against_single_reads(tokens, arguments.side)
        # First: workers are forks, which must not follow work in threads.
        for workers, augment, masks in itertools.product(
            sorted(arguments.workers, reverse=True), ("none", "crop_flip"), (None, PAPER_RATE, UNIFORM)
        ):
            loader = make_loader(tokens, arguments.side, arguments.batch, augment, masks, workers)
            name = f"{augment}, {'no' if masks is None else masks} masks, {workers} workers"
            runs = [images_per_second(loader, arguments.seconds) for _ in range(arguments.repeats)]
            rates[name] = {"images_per_second": sorted(runs)[len(runs) // 2], "runs": runs, "workers": workers}
    model_rate = model_images_per_second(config, 4, 4 * arguments.seconds)
    needed = arguments.gpu_fraction * arguments.gpu_tflops * 1e12 / training_flops(config)
    peaks = machine_peaks()

    print(describe_machine(peaks))
    print("\n| augmentation, masks, workers | images/s | times the model's here | times a GPU's |\n|---|---|---|---|")
    for name, row in rates.items():
        row["times_model"], row["times_gpu"] = (row["images_per_second"] / rate for rate in (model_rate, needed))
        print(f"| {name} | {row['images_per_second']:,.0f} | {row['times_model']:,.0f} | {row['times_gpu']:.1f} |")
    print(f"\nThe model trains on {model_rate:.1f} images/s here; a GPU would need {needed:,.0f}.")
    if arguments.output:
        metrics = {
            "rates": rates,
            "model_images_per_second": model_rate,
            "gpu_images_per_second_needed": needed,
            "machine": peaks,
        }
        write_results(arguments.output, metrics=metrics, seeds={"seed": 0}, arguments=vars(arguments))


if __name__ == "__main__":
    main()
