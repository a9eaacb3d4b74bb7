"""Options of other papers that might make a small next-pixel model better, one at a time, on one small GPT.

    python benchmarks/option_trials.py --tokens outputs/options/adam-0.003-0/tokens --seeds 0 1 \
        --output outputs/options/option-trials.json

Every trial has the same images in the same order, the same steps and the same optimizer (`--optimizer muon` of the
package) and the rotary positions of the package; what it changes is in `TRIALS`. Each ends with the likelihood of
validation images in raster order and, of its features' means over an image, with logistic regression on every layer.
The layer and the penalty are chosen on validation images, and the accuracy is that of test images.

A trial that is in the output file already is not repeated.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from plain_gpt import schedule
from resumed_runs import ResumedRuns
from torch import nn

from hf_igpt.data.token_store import load_tokens, token_rows, tokens_info
from hf_igpt.evaluation.logistic import fit_logistic
from hf_igpt.training.muon import MuonAdamW


LAYERS, WIDTH, HEADS, VALUES = 6, 64, 2, 512
BATCH, WARM_UP = 32, 0.1
ROTARY_BASE = 100
PROBE_IMAGES = {"train": 10000, "validation": 2500, "test": 10000}
PENALTIES = [10.0**power for power in range(-4, 1)]

# Options of a trial, and where they come from.
TRIALS = {
    "nothing": {},
    "EMA of weights": {"ema": 0.99},
    "norms of queries and keys": {"qk_norm": True},  # Henry et al. 2020
    "middle layers into later ones": {"skips": True},  # Ronneberger et al. 2015, Bao et al. 2023
    "prefixes that see themselves": {"prefix": True},  # Raffel et al. 2020, El-Nouby et al. 2024
    "random orders, annealed": {"orders": True},  # Yu et al. 2024
}


class Block(nn.Module):
    def __init__(self, qk_norm: bool):
        super().__init__()
        self.norm_1, self.norm_2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.project = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.expand, self.contract = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)
        # The package's initialisation.
        for layer, std in (
            (self.qkv, WIDTH**-0.5),
            (self.project, (WIDTH * LAYERS) ** -0.5),
            (self.expand, 0.02),
            (self.contract, 0.02),
        ):
            nn.init.normal_(layer.weight, std=std)
        # A head begins with the sharpness of unnormed queries and learns its own.
        self.sharpness = nn.Parameter(torch.full((HEADS, 1, 1), math.sqrt(WIDTH / HEADS))) if qk_norm else None

    def forward(
        self, x: torch.Tensor, turn_query: Callable, turn_key: Callable, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The block's output and the normed input of its attention, both (B, T, C)."""
        normed = self.norm_1(x)
        parts = self.qkv(normed).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        query, key, value = parts
        scale = None
        if self.sharpness is not None:
            query, key = F.normalize(query, dim=-1) * self.sharpness, F.normalize(key, dim=-1)
            scale = 1.0
        query, key = turn_query(query), turn_key(key)
        attended = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scale)
        x = x + self.project(attended.transpose(1, 2).flatten(2))
        hidden = self.expand(self.norm_2(x))
        return x + self.contract(hidden * torch.sigmoid(1.702 * hidden)), normed


class OptionGPT(nn.Module):
    """
    Args:
        side: of an image, in tokens.
        qk_norm: queries and keys have length one, and each head a learned sharpness.
        skips: the input of each of the first blocks is added, with a learned weight from zero, to that of its mirror
            image among the last.
        orders: places know the pixel that they hold too, for it isn't the one before.
    """

    def __init__(self, side: int, qk_norm: bool = False, skips: bool = False, orders: bool = False):
        super().__init__()
        self.side = side
        self.embed, self.positions = nn.Embedding(VALUES + 1, WIDTH), nn.Embedding(side * side, WIDTH)
        self.held_positions = nn.Embedding(side * side + 1, WIDTH) if orders else None
        for table in filter(None, (self.embed, self.positions, self.held_positions)):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(qk_norm) for _ in range(LAYERS))
        self.skips = nn.Parameter(torch.zeros(LAYERS // 2)) if skips else None
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, VALUES, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(
        self, tokens: torch.Tensor, order: torch.Tensor | None = None, prefix: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Args:
            tokens: (B, T), in raster order.
            order: (B, T), the pixels in the order in which they are predicted; by default raster.
            prefix: (B,), so many first places of an image see each other.

        Returns:
            Nats of every token in that order, (B, T), and every layer's features, each (B, T, C).
        """
        count, length = tokens.shape
        raster = torch.arange(length).expand(count, length)
        order = raster if order is None else order
        targets = tokens.gather(1, order)
        held = torch.cat([tokens.new_full((count, 1), VALUES), targets[:, :-1]], dim=1)
        held_places = torch.cat([torch.full((count, 1), length), order[:, :-1]], dim=1)
        x = self.embed(held) + self.positions(order)
        turn_query = turn_key = self.rotation(order)
        if self.held_positions is not None:
            x = x + self.held_positions(held_places)
            turn_key = self.rotation(held_places)
        mask = None
        if prefix is not None:
            places = torch.arange(length)
            mask = (places <= places[:, None]) | (places < prefix[:, None, None])
            mask = mask.unsqueeze(1)
        features, inputs = [], []
        for number, block in enumerate(self.blocks):
            if self.skips is not None and 2 * number >= LAYERS:
                mirrored = LAYERS - 1 - number
                x = x + self.skips[mirrored] * inputs[mirrored]
            inputs.append(x)
            x, normed = block(x, turn_query, turn_key, mask)
            features.append(normed)
        features.append(self.norm(x))
        logits = self.head(features[-1])
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none"), features

    def rotation(self, places: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Turns queries or keys (B, H, T, D) at places (B, T) by row and column."""
        pairs = WIDTH // HEADS // 2
        frequencies = ROTARY_BASE ** -(torch.arange(pairs // 2) / (pairs // 2))
        coordinates = (places // self.side, places % self.side)
        angles = torch.cat([each[:, None, :, None] * frequencies for each in coordinates], dim=-1)
        cos, sin = angles.cos(), angles.sin()

        def turn(states: torch.Tensor) -> torch.Tensor:
            first, second = states.chunk(2, dim=-1)
            return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)

        return turn


def groups_of(model: OptionGPT, matrix_rate: float) -> list[dict[str, Any]]:
    """Muon's groups and Adam's, as `hf_igpt.training.muon.muon_groups` makes them."""
    fused = [block.qkv.weight for block in model.blocks]
    single = [layer.weight for block in model.blocks for layer in (block.project, block.expand, block.contract)]
    muons = {id(weight) for weight in fused + single}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in muons]
    matrices = {"lr": matrix_rate}
    return [{"params": rest}, {"params": fused, "parts": 3, **matrices}, {"params": single, "parts": 1, **matrices}]


def training_loss(model: OptionGPT, tokens: torch.Tensor, options: dict[str, Any], progress: float) -> torch.Tensor:
    """Mean nats of a batch under the option; `progress` goes from 0 to 1 over the training."""
    count, length = tokens.shape
    if options.get("orders"):
        # Every image is in random order at first; none from four fifths of the training on.
        order = torch.arange(length).repeat(count, 1)
        shuffled = torch.rand(count) < 1 - progress / 0.8
        order[shuffled] = torch.rand(int(shuffled.sum()), length).argsort(dim=1)
        return model(tokens, order)[0].mean()
    if options.get("prefix"):
        # Half of the images have one. A place whose own token a place of the prefix holds would see its answer.
        prefix = torch.randint(1, length, (count,)) * (torch.rand(count) < 0.5)
        counted = torch.arange(length) >= prefix[:, None] - 1
        return model(tokens, prefix=prefix)[0][counted].mean()
    return model(tokens)[0].mean()


def train(
    tokens: torch.Tensor, options: dict[str, Any], arguments: argparse.Namespace, seed: int
) -> tuple[OptionGPT, float]:
    """The trained model and the seconds that it took."""
    torch.manual_seed(seed)
    switches = {name: True for name in ("qk_norm", "skips", "orders") if options.get(name)}
    model = OptionGPT(math.isqrt(tokens.shape[1]), **switches)
    optimizer = MuonAdamW(groups_of(model, arguments.matrix_learning_rate), lr=arguments.learning_rate)
    rates = [group["lr"] for group in optimizer.param_groups]
    steps = arguments.steps
    generator = torch.Generator().manual_seed(seed)
    epochs = [torch.randperm(len(tokens), generator=generator) for _ in range(math.ceil(steps * BATCH / len(tokens)))]
    order = torch.cat(epochs)[: steps * BATCH]
    average = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    started = time.perf_counter()
    for step, images in enumerate(order.split(BATCH)):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step, steps, WARM_UP)
        training_loss(model, tokens[images], options, step / steps).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if options.get("ema"):
            keep = min(options["ema"], (step + 1) / (step + 10))
            for name, weight in model.named_parameters():
                average[name].lerp_(weight.detach(), 1 - keep)
    seconds = time.perf_counter() - started
    if options.get("ema"):
        model.load_state_dict(average)
    return model.eval(), seconds


@torch.no_grad()
def pooled_features(model: OptionGPT, tokens: torch.Tensor, sees_all: bool) -> torch.Tensor:
    """Means over an image's places of every layer's features, (layers, images, C)."""
    parts = []
    for images in tokens.split(250):
        prefix = torch.full((len(images),), tokens.shape[1]) if sees_all else None
        parts.append(torch.stack([states.mean(dim=1) for states in model(images, prefix=prefix)[1]]))
    return torch.cat(parts, dim=1)


def probe(model: OptionGPT, images: dict[str, tuple[torch.Tensor, torch.Tensor]], sees_all: bool) -> dict[str, Any]:
    """Accuracy on test of the layer and penalty that are best on validation."""
    features = {split: pooled_features(model, tokens, sees_all) for split, (tokens, _) in images.items()}
    labels = {split: targets for split, (_, targets) in images.items()}
    penalties = torch.tensor(PENALTIES).repeat(len(features["train"]), 1)
    probes = fit_logistic(features["train"], labels["train"], penalties, int(labels["train"].max()) + 1)
    chosen = probes.accuracies(features["validation"], labels["validation"])
    layer, penalty = divmod(int(chosen.argmax()), len(PENALTIES))
    accuracy = float(probes.accuracies(features["test"], labels["test"])[layer, penalty])
    return {"layer": layer, "penalty": PENALTIES[penalty], "test_accuracy": accuracy}


def trial(data: dict[str, Any], options: dict[str, Any], arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One option with one seed: likelihood, probe and time."""
    model, seconds = train(data["train"], options, arguments, seed)
    with torch.no_grad():
        nats = [model(images)[0].mean(dim=1) for images in data["validation"].split(50)]
    row = {"seconds": seconds, "validation_nats_per_token": float(torch.cat(nats).mean())}
    row["probe"] = probe(model, data["probe"], sees_all=False)
    if options.get("prefix"):
        row["probe_that_sees_all"] = probe(model, data["probe"], sees_all=True)
    return row


def read_data(folder: str) -> dict[str, Any]:
    """Tokens to learn and to score, and the images of the probe with their classes."""
    stored = load_tokens(folder)

    def rows(split: str, images: int | None = None) -> torch.Tensor:
        return torch.from_numpy(token_rows(stored[split])[:images].astype("int64"))

    images = {
        split: (rows(split, count), torch.tensor(stored[split][:count]["label"]))
        for split, count in PROBE_IMAGES.items()
    }
    return {"train": rows("train"), "validation": rows("validation"), "probe": images}


def show(runs: list[dict[str, Any]]) -> None:
    """Means over seeds."""
    for name in TRIALS:
        found = [run for run in runs if run["option"] == name]
        if found:
            nats = statistics.mean(run["validation_nats_per_token"] for run in found)
            accuracy = statistics.mean(run["probe"]["test_accuracy"] for run in found)
            print(f"{name:32}{nats:8.4f} nats/token{100 * accuracy:8.2f} %{len(found):4} seeds")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", required=True, help="tokens of a palette with 512 colours and labels")
    options.add_argument("--trials", nargs="+", choices=TRIALS, default=list(TRIALS))
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--learning_rate", type=float, default=0.006)
    options.add_argument("--matrix_learning_rate", type=float, default=0.02)
    options.add_argument("--cpu_threads", type=int, default=1)
    options.add_argument("--output", required=True, help="results JSON to write")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.cpu_threads)
    data = read_data(arguments.tokens)
    shared = {name: getattr(arguments, name) for name in ("steps", "learning_rate", "matrix_learning_rate")}
    shared |= {"sizes": [LAYERS, WIDTH, HEADS, BATCH], "probe_images": PROBE_IMAGES}
    shared["tokens"] = tokens_info(load_tokens(arguments.tokens))["token_hash"]
    finished = ResumedRuns(arguments.output, shared)
    for seed in arguments.seeds:
        for name in arguments.trials:
            key = {"option": name, "seed": seed}
            if not finished.has(key):
                finished.add(key | trial(data, TRIALS[name], arguments, seed), vars(arguments))
                print(json.dumps(finished.runs[-1]), flush=True)
    show(finished.runs)


if __name__ == "__main__":
    main()
