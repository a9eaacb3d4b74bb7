"""Time to a likelihood: transformers' ImageGPT under Trainer, a plain GPT loop, and ours, on the same tokens.

    python benchmarks/speedrun.py --tokens outputs/speedrun/tokens --contestant plain \
        --learning_rate 0.003 0.006 --steps 400 --output outputs/speedrun/plain.json
    python benchmarks/speedrun.py --summarize outputs/speedrun/{native,plain,ours}*.json --target 2.85 \
        --output outputs/speedrun/speedrun.json

Models of the same size see the same training images in batches of the same size, and score every pixel. Each run is a
whole schedule, warm-up and cosine to zero, and ends with the likelihood of the same validation images. What counts is
the time of training alone, on a machine with nothing else on it: for native Trainer's `train_runtime`, for plain the
loop, for ours the steps of both runs. Rates are tuned for each contestant with one seed; the best are then run with
three, the contestants in turn, so that an hour in which the machine is slow is slow for all of them.

- native: transformers' ImageGPT under its Trainer, with the paper's Adam (betas 0.9 and 0.95, no weight decay, no
  dropout). The loss is taken from its logits, for its own can't score the first pixel.
- plain: `plain_gpt.py` in a loop of the nanoGPT kind: fused AdamW, weight decay on matrices, gradients clipped to 1.
- ours: `hf-igpt pretrain cifar10-speedrun`, first on the same images in 8x8, then from that checkpoint. Both count.

A run that is in the output file already is not repeated.
"""

import argparse
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from plain_gpt import PlainGPT, schedule
from resumed_runs import ResumedRuns
from torch import nn
from torch.utils.data import TensorDataset

from hf_igpt.data.token_store import load_tokens, token_rows, tokens_info
from hf_igpt.results import read_results, write_results


LAYERS, WIDTH, HEADS = 6, 64, 2
BATCH = 32
WARM_UP = 0.1  # of a schedule
VALIDATION_IMAGES = 1000
RECIPE = "cifar10-speedrun"


def token_tensor(folder: str, split: str) -> torch.Tensor:
    """The tokens of a split, (images, tokens)."""
    return torch.from_numpy(token_rows(load_tokens(folder)[split]).astype("int64"))


@torch.no_grad()
def validation_nats(loss: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> float:
    """Nats per token of validation images."""
    parts = images.split(50)
    return sum(float(loss(part)) * len(part) for part in parts) / len(images)


# The contestants: each trains and returns the seconds of its stages and the loss of a batch of images


def native(arguments: argparse.Namespace, rate: float, steps: int, seed: int) -> tuple[list[float], Callable]:
    from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling, Trainer, TrainingArguments, set_seed

    set_seed(seed)
    train = token_tensor(arguments.tokens, "train")
    sizes = {"n_layer": LAYERS, "n_embd": WIDTH, "n_head": HEADS, "n_positions": train.shape[1]}
    config = ImageGPTConfig(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    model = ImageGPTForCausalImageModeling(config)

    def inputs(tokens: torch.Tensor) -> torch.Tensor:
        start = tokens.new_full((len(tokens), 1), config.vocab_size - 1)
        return torch.cat([start, tokens[:, :-1]], dim=1)

    def collate(rows: list[tuple[torch.Tensor]]) -> dict[str, torch.Tensor]:
        tokens = torch.stack([row[0] for row in rows])
        return {"input_ids": inputs(tokens), "labels": tokens}

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())

    with tempfile.TemporaryDirectory() as folder:
        training = TrainingArguments(
            folder,
            seed=seed,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=rate,
            warmup_steps=round(WARM_UP * steps),
            lr_scheduler_type="cosine",
            adam_beta2=0.95,
            max_grad_norm=1.0,
            save_strategy="no",
            report_to="none",
            logging_steps=50,
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model, training, data_collator=collate, train_dataset=TensorDataset(train), compute_loss_func=loss
        )
        seconds = trainer.train().metrics["train_runtime"]
    model.eval()
    return [seconds], lambda tokens: loss(model(input_ids=inputs(tokens)), tokens)


def plain(arguments: argparse.Namespace, rate: float, steps: int, seed: int) -> tuple[list[float], Callable]:
    torch.manual_seed(seed)
    train = token_tensor(arguments.tokens, "train")
    model = PlainGPT(LAYERS, WIDTH, HEADS, train.shape[1])
    for module in model.modules():
        # nanoGPT's initialisation.
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for block in model.blocks:
        for layer in (block.project, block.contract):
            nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * LAYERS))
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    order = torch.cat([torch.randperm(len(train)) for _ in range(math.ceil(steps * BATCH / len(train)))])
    started = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(step, steps, WARM_UP)
        loss = model(train[order[step * BATCH : (step + 1) * BATCH]])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return [time.perf_counter() - started], model.eval()


def ours(arguments: argparse.Namespace, rate: float, steps: int, seed: int) -> tuple[list[float], Callable]:
    from hf_igpt import ImageGPTForCausalImageModeling

    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        begin = {"tokens": arguments.small_tokens, "palette": arguments.small_palette, "image_size": 8}
        first = _pretrain(small, rate, arguments.small_steps, seed, arguments.cpu_threads, **begin)
        go_on = {"tokens": arguments.tokens, "palette": arguments.palette, "init_from": small / "model"}
        second = _pretrain(large, rate, steps, seed, arguments.cpu_threads, **go_on)
        model = ImageGPTForCausalImageModeling.from_pretrained(large / "model").eval()
    return [first, second], lambda tokens: model(labels=tokens).loss


def _pretrain(folder: Path, rate: float, steps: int, seed: int, threads: int, tokens: str, **more: Any) -> float:
    """Seconds of training of one run of the recipe."""
    from hf_igpt.commands.pretrain import parse
    from hf_igpt.training.pretraining import pretrain

    options = {"tokens": tokens, "output_dir": folder, "learning_rate": rate, "max_steps": steps, "eval_steps": steps}
    options |= {"seed": seed, "cpu_threads": threads, **more}
    options["warmup_epochs"] = WARM_UP * steps * BATCH / len(load_tokens(tokens)["train"])
    parsed = parse([RECIPE, *(f"--{name}={value}" for name, value in options.items())])
    sizes = (parsed.num_hidden_layers, parsed.hidden_size, parsed.num_attention_heads, parsed.total_batch_size)
    if sizes != (LAYERS, WIDTH, HEADS, BATCH):
        raise SystemExit(f"Recipe {RECIPE} has other sizes than its peers' {LAYERS, WIDTH, HEADS, BATCH}: {sizes}.")
    return pretrain(parsed)["training_seconds"]


CONTESTANTS = {"native": native, "plain": plain, "ours": ours}


def _schedules(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The schedules of one file that were run with at least three seeds."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    names = ("learning_rate", "steps", "cpu_threads", "small_steps")
    for run in runs:
        groups.setdefault(tuple(run.get(name) for name in names), []).append(run)
    found = []
    for key, group in groups.items():
        group.sort(key=lambda run: run["seed"])
        row = dict(zip(names, key, strict=True)) | {"seeds": [run["seed"] for run in group]}
        row |= {name: [run[name] for run in group] for name in ("seconds", "validation_nats_per_token")}
        if len(group) >= 3:
            found.append(row | {"median_seconds": statistics.median(row["seconds"])})
    return found


def summarize(arguments: argparse.Namespace) -> None:
    """Of each contestant the fastest schedule and rate that reach the target on average over at least three seeds."""
    results = [read_results(path) for path in arguments.summarize]
    if len({result["metrics"]["tokens"] for result in results}) > 1:
        raise SystemExit("The contestants had other tokens, so their likelihoods can't be compared.")
    reached: dict[str, list[dict[str, Any]]] = {}
    tried: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        contestant, runs = result["metrics"]["contestant"], result["metrics"]["runs"]
        tried.setdefault(contestant, []).extend(runs)
        source = {name: result[name] for name in ("command", "commit", "hardware", "versions")}
        found = [schedule | {"source": source} for schedule in _schedules(runs)]
        reached.setdefault(contestant, []).extend(
            each for each in found if statistics.mean(each["validation_nats_per_token"]) <= arguments.target
        )
    rows = {}
    for contestant, found in reached.items():
        if not found:
            raise SystemExit(f"{contestant} has no three seeds that reach {arguments.target}.")
        best = min(found, key=lambda schedule: schedule["median_seconds"])
        rows[contestant] = best | {"tried": tried[contestant]}
    for name, row in rows.items():
        print(f"{name:8}{row['median_seconds']:8.1f} s{row['steps']:6} steps of {row['learning_rate']:g}")
    peers = [row["median_seconds"] for name, row in rows.items() if name != "ours"]
    ratio = min(peers) / rows["ours"]["median_seconds"]
    print(f"ours is {ratio:.2f} times faster than the better peer")
    metrics = {"target": arguments.target, "contestants": rows, "times_faster_than_the_better_peer": ratio}
    metrics |= {name: results[0]["metrics"][name] for name in ("sizes", "tokens")}
    write_results(arguments.output, metrics=metrics, arguments=vars(arguments))


def check(arguments: argparse.Namespace) -> None:
    """Raises SystemExit where an option is missing, or is one of another contestant."""
    of_all = ("contestant", "tokens", "learning_rate", "steps")
    of_ours = ("palette", "small_tokens", "small_palette", "small_steps")
    if arguments.summarize:
        what, wanted = "--summarize", ("target",)
    elif arguments.contestant is None:
        raise SystemExit("Name a --contestant to run, or files to --summarize.")
    else:
        what = f"--contestant {arguments.contestant}"
        wanted = of_all + of_ours if arguments.contestant == "ours" else of_all
    given = {name for name in (*of_all, *of_ours, "target") if getattr(arguments, name) is not None}
    if missing := [name for name in wanted if name not in given]:
        raise SystemExit(f"{what} needs --{missing[0]}.")
    if stray := sorted(given.difference(wanted)):
        raise SystemExit(f"{what} has no use for --{stray[0]}. Leave it out.")


def race(arguments: argparse.Namespace) -> None:
    """Runs one contestant with every length, rate and seed."""
    images = token_tensor(arguments.tokens, "validation")[:VALIDATION_IMAGES]
    shared = {"contestant": arguments.contestant, "sizes": [LAYERS, WIDTH, HEADS, BATCH]}
    shared["tokens"] = tokens_info(load_tokens(arguments.tokens))["token_hash"]
    finished = ResumedRuns(arguments.output, shared)
    same = {"cpu_threads": arguments.cpu_threads}
    if arguments.contestant == "ours":
        same["small_steps"] = arguments.small_steps
    for steps, rate, seed in itertools.product(arguments.steps, arguments.learning_rate, arguments.seeds):
        key = {"learning_rate": rate, "steps": steps, "seed": seed, **same}
        if not finished.has(key):
            stages, loss = CONTESTANTS[arguments.contestant](arguments, rate, steps, seed)
            found = {"seconds": sum(stages), "stage_seconds": stages}
            found["validation_nats_per_token"] = validation_nats(loss, images)
            finished.add(key | found, vars(arguments))
            print(json.dumps(finished.runs[-1]), flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", help="tokens that hf-igpt tokenize_dataset wrote")
    options.add_argument("--contestant", choices=CONTESTANTS)
    options.add_argument("--learning_rate", type=float, nargs="+", help="peak learning rates of Adam")
    options.add_argument("--steps", type=int, nargs="+", help="lengths of schedules")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--palette", help="of ours: a folder with the image processor of the tokens")
    options.add_argument("--small_tokens", help="of ours: the same images in 8x8, tokens of the same palette")
    options.add_argument("--small_palette", help="of ours: a folder with their image processor")
    options.add_argument("--small_steps", type=int, help="of ours: length of the schedule on them")
    options.add_argument("--cpu_threads", type=int, default=2)
    options.add_argument("--summarize", nargs="+", help="files of contestants to compare, instead of a run")
    options.add_argument("--target", type=float, help="validation nats/token to reach")
    options.add_argument("--output", required=True, help="results JSON to write")
    arguments = options.parse_args()
    check(arguments)
    if arguments.summarize:
        summarize(arguments)
        return
    torch.set_num_threads(arguments.cpu_threads)
    race(arguments)


if __name__ == "__main__":
    main()
