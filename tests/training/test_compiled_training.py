"""`torch_compile` through Trainer: one graph for a whole run, with the losses of an uncompiled one."""

from pathlib import Path

import pytest
import torch
from fault_harness import NUM_IMAGES, run_config, token_dataset
from tiny_models import randomize_
from torch._dynamo.utils import counters
from transformers import TrainingArguments
from two_processes import on_two_processes

from hf_igpt.training import trainer_arguments
from hf_igpt.training.arguments import PretrainArguments
from hf_igpt.training.objectives import collator, model_class
from hf_igpt.training.trainer import IGPTTrainer
from hf_igpt.training.trainer_arguments import training_arguments


def train(folder, objective: str = "next_pixel", is_compiled: bool = True, batch: int = 4, **options) -> list[float]:
    """Losses of two epochs and a half of 20 images in steps of 8: every epoch ends in the middle of a batch."""
    settings = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "remove_unused_columns": False}
    # This backend stops before code generation: graphs and gradients are those that any backend is given.
    compiling = {"torch_compile": True, "torch_compile_backend": "aot_eager"} if is_compiled else {}
    config = run_config(is_causal=objective == "next_pixel")
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=2,
        max_steps=7,
        learning_rate=0.01,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="no",
        prediction_loss_only=True,
        **settings,
        **compiling,
        **options,
    )
    trainer = IGPTTrainer(
        randomize_(model_class(config)(config)),
        arguments,
        train_dataset=token_dataset(),
        eval_dataset=token_dataset(),
        data_collator=collator(PretrainArguments(objective=objective), config),
    )
    trainer.train()
    history = trainer.state.log_history
    assert len([entry for entry in history if "eval_loss" in entry]) == 3
    return [entry["loss"] for entry in history if "loss" in entry]


def count_graphs(folder, **options) -> tuple[list[float], int, dict]:
    torch._dynamo.reset()
    counters.clear()
    losses = train(folder, **options)
    return losses, counters["stats"]["unique_graphs"], dict(counters["graph_break"])


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "next_pixel"},
        {"objective": "masked", "gradient_checkpointing": True},
        {"objective": "next_pixel", "bf16": True},
    ],
    ids=["next_pixel", "masked, checkpointing", "bf16"],
)
def test_a_run_is_one_graph_with_the_losses_of_an_uncompiled_one(tmp_path, options):
    losses, graphs, breaks = count_graphs(tmp_path / "compiled", **options)
    assert (graphs, breaks) == (1, {})
    expected = train(tmp_path / "plain", is_compiled=False, **options)
    assert len(losses) == 7 and losses[-1] < losses[0]
    assert losses == pytest.approx(expected, abs=0.02 if options.get("bf16") else 1e-4)


def train_here(folder: str) -> None:
    torch.save(count_graphs(folder, batch=2), Path(folder) / f"{torch.distributed.get_rank()}.pt")


def test_two_compiled_processes_have_the_losses_of_one(tmp_path):
    on_two_processes(train_here, str(tmp_path))
    expected = train(tmp_path / "plain", is_compiled=False)
    for rank in range(2):
        losses, graphs, _ = torch.load(tmp_path / f"{rank}.pt")
        assert losses == pytest.approx(expected, abs=1e-4)
        # Once with gradients sent and once, in accumulation, without; breaks are those of DDP itself.
        assert 1 <= graphs <= 4


# Precision and copies, as recipes have them


def arguments_on(monkeypatch, folder, *, cuda: bool = False, bf16: bool = False, amx: bool = False, **options):
    """Trainer's own arguments on a machine with these abilities."""
    made = {}
    monkeypatch.setattr("transformers.TrainingArguments", lambda **fields: made.update(fields) or made)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(trainer_arguments, "use_cpu", lambda: not cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    return training_arguments(PretrainArguments(output_dir=str(folder), report_to="none", **options), NUM_IMAGES)


@pytest.mark.parametrize(
    ("machine", "precision"),
    [
        ({}, "fp32"),
        ({"amx": True}, "bf16"),
        ({"cuda": True, "bf16": True}, "bf16"),
        ({"cuda": True, "amx": True}, "fp32"),  # the GPU trains, and has bf16 in software only
        ({"amx": True, "precision": "fp32"}, "fp32"),
        ({"precision": "fp16"}, "fp16"),
    ],
)
def test_precision_is_the_fastest_that_the_machine_has(monkeypatch, tmp_path, machine, precision):
    fields = arguments_on(monkeypatch, tmp_path, **machine)
    assert {name: fields[name] for name in ("bf16", "fp16")} == {name: name == precision for name in ("bf16", "fp16")}


@pytest.mark.parametrize("cuda", [False, True])
def test_batches_are_copied_in_the_background_where_there_is_a_gpu(monkeypatch, tmp_path, cuda):
    fields = arguments_on(monkeypatch, tmp_path, cuda=cuda, bf16=True)
    assert fields["dataloader_pin_memory"] is cuda
    assert fields["accelerator_config"]["non_blocking"] is cuda
    assert fields["optim"] == "adamw_torch_fused"
