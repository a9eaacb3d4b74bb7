"""transformers' own Trainer on our models: no loss and no gradient depends on how a step is split."""

from pathlib import Path

import pytest
import torch
from tiny_models import random_tokens, randomize_, tiny_config
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from two_processes import on_two_processes

from hf_igpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTForMaskedImageModeling
from hf_igpt.data.masking import Masking


HEADS = ("causal", "masked", "classifier")
IMAGES = 22  # in batches of 8: the last one is short, and so is its last part


class Images(Dataset):
    """What the collators give the causal and the masked head; classes for the classifier."""

    def __init__(self, head: str, count: int = IMAGES):
        self.tokens = random_tokens(tiny_config(), batch=count, seed=7)
        self.head = head

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = self.tokens[index]
        if self.head == "causal":
            return {"labels": tokens}
        if self.head == "masked":
            mask = torch.from_numpy(Masking(12, "uniform")(0, index))[0]
            return {"input_ids": tokens, "bool_masked_pos": mask, "labels": tokens}
        return {"input_ids": tokens, "labels": tokens[0] % 3}


def stacked(dataset: Images, count: int) -> dict[str, torch.Tensor]:
    items = [dataset[index] for index in range(count)]
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def tiny_model(head: str) -> torch.nn.Module:
    if head == "causal":
        return randomize_(ImageGPTForCausalImageModeling(tiny_config())).double()
    if head == "masked":
        return randomize_(ImageGPTForMaskedImageModeling(tiny_config())).double()
    config = tiny_config(num_labels=3, generative_loss_weight=0.5, pooler_layer=1)
    return randomize_(ImageGPTForImageClassification(config)).double()


class Gradients(TrainerCallback):
    """Keeps every gradient that the optimizer is about to apply."""

    def __init__(self):
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters()})


def make_trainer(head: str, folder, batch: int, accumulation: int, count: int = IMAGES) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,
        learning_rate=0.1,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    dataset = Images(head, count)
    trainer = Trainer(tiny_model(head), arguments, train_dataset=dataset, eval_dataset=dataset)
    trainer._get_train_sampler = lambda *_: SequentialSampler(dataset)
    return trainer


def train(head: str, folder, batch: int, accumulation: int, count: int = IMAGES):
    trainer, gradients = make_trainer(head, folder, batch, accumulation, count), Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, gradients.steps, dict(trainer.model.named_parameters())


@pytest.fixture(scope="module")
def unsplit(tmp_path_factory):
    return {head: train(head, tmp_path_factory.mktemp(head), 8, 1) for head in HEADS}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("batch", "accumulation"), [(2, 4), (1, 8), (4, 2)])
def test_trap_gradient_accumulation_multiplies_loss_and_gradients(tmp_path, unsplit, head, batch, accumulation):
    """22 images in steps of 8: the last step has 6, and its last part is short too. transformers' ImageGPT trains on
    4 and 8 times the gradient here."""
    losses, gradients, weights = train(head, tmp_path, batch, accumulation)
    expected_losses, expected_gradients, expected_weights = unsplit[head]
    assert len(losses) == len(gradients) == 3
    assert losses == pytest.approx(expected_losses, abs=1e-5)
    for step, expected in zip(gradients, expected_gradients, strict=True):
        for name, gradient in step.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-12, rtol=0, msg=name)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[name], atol=1e-12, rtol=0, msg=name)


@pytest.mark.parametrize("head", HEADS)
def test_the_step_is_the_gradient_of_the_models_own_mean_loss(unsplit, head):
    model = tiny_model(head)
    loss = model(**stacked(Images(head), 8)).loss
    loss.backward()
    assert unsplit[head][0][0] == pytest.approx(loss.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        gradient = unsplit[head][1][0][name]
        assert gradient.abs().max() > 1e-5, name
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-12, rtol=0, msg=name)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("batch", [22, 8, 1])
def test_eval_loss_is_the_mean_over_images(tmp_path, head, batch):
    metrics = make_trainer(head, tmp_path, batch, 1).evaluate()
    expected = tiny_model(head).eval()(**stacked(Images(head), IMAGES)).loss.item()
    assert metrics["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_compute_metrics_gets_the_logits_of_every_image(tmp_path):
    seen = {}
    for head in HEADS:
        trainer = make_trainer(head, tmp_path / head, 8, 1)
        trainer.compute_metrics = lambda prediction, head=head: seen.setdefault(head, prediction) and {}
        assert "eval_loss" in trainer.evaluate()
    logits = seen["causal"].predictions
    assert logits.shape == seen["masked"].predictions.shape == (IMAGES, 12, 10)
    predictions = seen["classifier"].predictions
    logits = predictions[0] if isinstance(predictions, tuple) else predictions
    assert logits.shape == (IMAGES, 3)
    assert seen["classifier"].label_ids.shape == (IMAGES,)


def train_heads(folder: str) -> None:
    for head in HEADS:
        eval_loss = make_trainer(head, folder, 2, 2, count=20).evaluate()["eval_loss"]
        trainer = make_trainer(head, folder, 2, 2, count=20)
        trainer.train()
        assert trainer.args.world_size == 2
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        state = {name: p.detach() for name, p in trainer.model.named_parameters()}
        torch.save((losses, state, eval_loss), Path(folder) / f"{head}_{trainer.args.process_index}.pt")


def test_two_processes_equal_one_in_loss_and_final_weights(tmp_path):
    """20 images in steps of 8: the last step has one batch of 2 for each process, and half the accumulation."""
    on_two_processes(train_heads, str(tmp_path))
    for head in HEADS:
        expected_losses, _, expected_weights = train(head, tmp_path, 8, 1, count=20)
        expected_eval_loss = make_trainer(head, tmp_path, 20, 1, count=20).evaluate()["eval_loss"]
        for rank in range(2):
            losses, weights, eval_loss = torch.load(tmp_path / f"{head}_{rank}.pt", weights_only=True)
            assert losses == pytest.approx(expected_losses, abs=1e-5)
            assert eval_loss == pytest.approx(expected_eval_loss, abs=1e-5)
            for name, weight in weights.items():
                torch.testing.assert_close(weight, expected_weights[name], atol=1e-12, rtol=0, msg=name)
