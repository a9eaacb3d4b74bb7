"""From a checkpoint to a classifier: what is trained, at which rates, until when, and on what."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from native_models import native_model
from safetensors.torch import load_file
from tiny_models import random_tokens, tiny_causal, tiny_masked

from hf_igpt import IGPTImageProcessor
from hf_igpt.commands.checkpoints import load_checkpoint
from hf_igpt.data.loading import ClassCollator
from hf_igpt.data.masking import Masking
from hf_igpt.data.options import load_source
from hf_igpt.data.token_store import write_record
from hf_igpt.data.tokenization import tokenize
from hf_igpt.evaluation.classification import Classification
from hf_igpt.training import cost
from hf_igpt.training.finetune_arguments import FinetuneArguments
from hf_igpt.training.finetune_data import labelled_data
from hf_igpt.training.finetune_trainer import FinetuneTrainer, distance_from_top, evaluations_since_best
from hf_igpt.training.finetuning import Checkpoint, _build_trainer, _check, classifier_of
from hf_igpt.training.runs import train_to_the_end


CLASSES = 3
HEADS = {"causal": tiny_causal, "masked": tiny_masked}


@pytest.fixture(autouse=True)
def no_measurement(monkeypatch):
    monkeypatch.setattr(cost, "matmul_peak", lambda device, dtype: 1e12)


def checkpoint_of(head: str, name: str = "nowhere", **overrides) -> Checkpoint:
    model = HEADS[head](torch.float32, **overrides)
    palette = np.random.default_rng(0).integers(0, 256, (10, 3))
    processor = IGPTImageProcessor(size={"height": 3, "width": 4}, palette=palette)
    return Checkpoint(name, model, processor, "digest", {"name": name})


def tokens_of(count: int = 20, labels=None, classes: int = CLASSES) -> datasets.DatasetDict:
    feature = datasets.Sequence(datasets.Value("uint8"), length=12)
    label = datasets.ClassLabel(names=[f"class {number}" for number in range(classes)])
    features = datasets.Features({"input_ids": feature, "label": label})
    config = tiny_causal().config

    def split(seed: int) -> datasets.Dataset:
        rows = random_tokens(config, count, seed=seed)
        chosen = (rows[:, 0] % CLASSES).tolist() if labels is None else labels
        split = datasets.Dataset.from_dict({"input_ids": rows.tolist(), "label": chosen}, features=features)
        write_record(split, {"source": {"name": "drawn"}}, [])
        return split

    return datasets.DatasetDict({name: split(seed) for seed, name in enumerate(("train", "validation", "test"))})


def trainer_of(folder, head: str = "causal", checkpoint: Checkpoint | None = None, **options) -> FinetuneTrainer:
    options = {"augmentation": "none", "learning_rate": 1e-2, "max_steps": 1, "logging_steps": 1} | options
    options = {"total_batch_size": 8, "report_to": "none", "eval_steps": 1} | options
    checkpoint = checkpoint or checkpoint_of(head)
    settings = _check(FinetuneArguments(output_dir=str(folder), **options), checkpoint)
    trainer = _build_trainer(settings, checkpoint, labelled_data(settings, tokens_of()))
    trainer.args.disable_tqdm = True
    return trainer


def weights_of(trainer: FinetuneTrainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def logged(trainer: FinetuneTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# The model


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_the_classifier_has_the_checkpoints_weights(head, use_bias):
    model = HEADS[head](torch.bfloat16, use_bias=use_bias)
    classifier = classifier_of(model, ["a", "b"], pooler_layer=1)
    assert classifier.config.id2label == {0: "a", 1: "b"} and classifier.config.label2id == {"a": 0, "b": 1}
    assert classifier.config.is_causal == model.config.is_causal and classifier.config.pooler_layer == 1
    expected = dict(model.named_parameters())
    for name, parameter in classifier.named_parameters():
        assert parameter.dtype == torch.float32, name
        if name != "score.weight":
            assert torch.equal(parameter, expected.pop(name).float()), name
    assert not expected and not classifier.score.weight.any()
    fresh = classifier_of(model, ["a", "b"], from_scratch=True, generative_loss_weight=0.0)
    assert not hasattr(fresh, "lm_head")
    assert not torch.allclose(fresh.transformer.wpe.weight, classifier.transformer.wpe.weight, atol=0.1)


def test_checkpoints_of_transformers_own_class_are_taken(tmp_path):
    native_model().save_pretrained(tmp_path / "native")
    palette = np.random.default_rng(0).integers(0, 256, (10, 3))
    IGPTImageProcessor(size=4, palette=palette).save_pretrained(tmp_path / "native")
    name = str(tmp_path / "native")
    model, processor, digest = load_checkpoint(name)
    classifier = classifier_of(model, ["a", "b"], embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0)
    tokens = random_tokens(model.config)
    expected = model(labels=tokens)
    outputs = classifier(tokens, torch.tensor([0, 1]))
    assert outputs.generative_loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    torch.testing.assert_close(classifier.pooled_features(tokens), model.pooled_features(tokens))
    with pytest.raises(ValueError, match="give `--learning_rate`"):
        _check(FinetuneArguments(augmentation="none"), Checkpoint(name, model, processor, digest, {}))


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_learns_from_the_joint_loss(tmp_path, head):
    trainer = trainer_of(tmp_path, head)
    before = weights_of(trainer)
    trainer.train()
    assert [name for name, after in weights_of(trainer).items() if torch.equal(after, before[name])] == []


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_learns_from_the_class_alone(tmp_path, head):
    trainer = trainer_of(tmp_path, head, generative_loss_weight=0, max_steps=2, eval_steps=2, patience=9)
    before = weights_of(trainer)
    trainer.train()
    # In the first step the head is zero and passes nothing on.
    assert [name for name, after in weights_of(trainer).items() if torch.equal(after, before[name])] == []
    assert "lm_head.weight" not in before and logged(trainer, "eval_generative_loss") == []


def test_accumulation_changes_neither_loss_nor_weights(tmp_path):
    for head in HEADS:
        whole, split = (
            trainer_of(tmp_path / f"{head}{size}", head, max_steps=3, per_device_train_batch_size=size)
            for size in (8, 2)
        )
        assert split.args.gradient_accumulation_steps == 4
        for trainer in (whole, split):
            trainer.train()
        assert len(logged(whole, "loss")) == 3
        assert logged(split, "loss") == pytest.approx(logged(whole, "loss"), rel=1e-5)
        assert logged(split, "eval_loss") == pytest.approx(logged(whole, "eval_loss"), rel=1e-4)


def test_masks_are_new_in_every_epoch_and_the_same_in_every_run(tmp_path):
    trainer = trainer_of(tmp_path, "masked", mask_rate=0.5)
    count = len(trainer.train_dataset)
    first, again, later = (
        trainer.data_collator(trainer.train_dataset.__getitems__(keys))
        for keys in ([0, 1, 2], [0, 1, 2], [count, count + 1, count + 2])
    )
    assert torch.equal(first["input_ids"], later["input_ids"]) and torch.equal(first["labels"], later["labels"])
    assert torch.equal(first["bool_masked_pos"], again["bool_masked_pos"])
    assert not torch.equal(first["bool_masked_pos"], later["bool_masked_pos"])
    assert trainer.masking == trainer.data_collator.masking and trainer.masking.rate == 0.5


def test_examples_without_a_class_are_refused():
    collator = ClassCollator(10, 12, num_classes=3)
    tokens = np.zeros(12, dtype=np.uint8)
    batch = collator([{"input_ids": tokens, "label": 2}, {"input_ids": tokens, "label": np.int64(0)}])
    assert batch["labels"].tolist() == [2, 0] and batch["labels"].dtype == torch.int64
    for label in (3, -1, None, 0.5):
        with pytest.raises(ValueError, match="`label` of example 1 must be a class from 0 to 2, got"):
            collator([{"input_ids": tokens, "label": 0}, {"input_ids": tokens, "label": label}])
    with pytest.raises(ValueError, match="which masks are a function of"):
        ClassCollator(10, 12, num_classes=3, masking=Masking(12))([{"input_ids": tokens, "label": 0}])


def test_random_crops_of_images_keep_their_classes(tmp_path):
    processor = IGPTImageProcessor(size=4, palette=np.arange(30).reshape(10, 3) * 8, do_center_crop=True, crop_size=6)
    model = tiny_causal(torch.float32, image_size=4)
    checkpoint = Checkpoint("nowhere", model, processor, "digest", {})
    options = {"dataset_name": "digits", "max_images": 60, "max_train_images": 50, "learning_rate": 0.1}
    settings = _check(
        FinetuneArguments(output_dir=str(tmp_path), augmentation="random_resized_crop", report_to="none", **options),
        checkpoint,
    )
    tokens = tokenize(load_source(settings), processor)
    data = labelled_data(settings, tokens)
    examples = list(_build_trainer(settings, checkpoint, data).train_dataset)
    assert [example["label"] for example in examples] == data.splits["train"].labels.tolist()
    assert len(examples) == 50 and examples[0]["input_ids"].shape == (16,)
    rows = np.array(data.splits["train"].tokens["input_ids"])
    alike = np.mean([example["input_ids"] == row for example, row in zip(examples, rows, strict=True)])
    shifted = np.mean([example["input_ids"] == row for example, row in zip(examples, rows[::-1], strict=True)])
    assert alike > 1.5 * shifted


# Rates


def test_rates_fall_with_the_distance_from_the_head(tmp_path):
    """Adam's first step is the rate itself, so it shows in the weights."""
    trainer = trainer_of(tmp_path, layer_decay=0.5, weight_decay=0.0)
    before = weights_of(trainer)
    trainer.train()
    expected = {"score": 0, "lm_head": 0, "ln_f": 0, "h.1.": 1, "h.0.": 2, "wte": 3, "wpe": 3}
    for name, after in weights_of(trainer).items():
        (distance,) = [distance for part, distance in expected.items() if part in name]
        assert distance_from_top(name, 2) == distance
        step = (after - before[name]).abs().max().item()
        assert step == pytest.approx(1e-2 * 0.5**distance, rel=1e-3), name
    assert logged(trainer, "learning_rate") == [1e-2]


def test_groups_hold_every_parameter_once(tmp_path):
    trainer = trainer_of(tmp_path, layer_decay=0.7, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(names)
    decayed = {names[parameter] for group in groups if group["weight_decay"] for parameter in group["params"]}
    assert decayed == set(trainer.get_decay_parameter_names(trainer.model))
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1} and groups[0]["lr"] == 1e-2


def test_the_rate_is_constant(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=5, warmup_epochs=2 / 3)
    trainer.train()
    assert logged(trainer, "learning_rate") == pytest.approx([0, 5e-3, 1e-2, 1e-2, 1e-2])


def test_the_rate_comes_from_the_pretraining(tmp_path):
    checkpoint = checkpoint_of("causal", str(tmp_path))
    with pytest.raises(ValueError, match="does not say at which learning rate .* give `--learning_rate`"):
        _check(FinetuneArguments(augmentation="none"), checkpoint)
    (tmp_path / "training_args.json").write_text(json.dumps({"learning_rate": 3e-3}))
    options = {"augmentation": "none"}
    assert _check(FinetuneArguments(**options), checkpoint).learning_rate == pytest.approx(3e-4)
    assert _check(FinetuneArguments(from_scratch=True, **options), checkpoint).learning_rate == 3e-3
    assert _check(FinetuneArguments(learning_rate=0.5, **options), checkpoint).learning_rate == 0.5


# The end


def classified(accuracy: float) -> Classification:
    labels = np.arange(20) % CLASSES
    votes = np.where(np.arange(20) < round(20 * accuracy), labels, (labels + 1) % CLASSES)
    return Classification(labels, votes[None], np.ones((1, 20)), np.ones((1, 20)), CLASSES, 1.0)


@pytest.mark.parametrize(
    ("accuracies", "since"), [([], 0), ([0.5], 0), ([0.5, 0.5], 1), ([0.5, 0.6, 0.4, 0.6, 0.1], 3), ([0.1, 0.2], 0)]
)
def test_evaluations_since_the_best(accuracies, since):
    assert evaluations_since_best(accuracies) == since


def test_training_stops_and_the_best_weights_are_what_is_left(tmp_path, monkeypatch):
    accuracies = [0.2, 0.6, 0.5, 0.6, 0.4, 0.9]
    monkeypatch.setattr(
        FinetuneTrainer, "classify", lambda self, *_: classified(accuracies[self.state.global_step - 1])
    )
    trainer = trainer_of(tmp_path / "run", max_steps=6, patience=3)
    assert train_to_the_end(trainer) is None
    assert logged(trainer, "eval_accuracy") == accuracies[:5]
    assert (trainer.state.global_step, trainer.state.best_global_step) == (5, 2)
    best = load_file(tmp_path / "run/checkpoint-2/model.safetensors")
    last = load_file(tmp_path / "run/checkpoint-5/model.safetensors")
    assert not torch.equal(best["score.weight"], last["score.weight"])
    for name, weight in weights_of(trainer).items():
        assert torch.equal(weight, best[name]), name
    # Killed before the model was written, it does not train on.
    again = trainer_of(tmp_path / "run", max_steps=6, patience=3)
    assert train_to_the_end(again) == "checkpoint-5"
    assert again.state.global_step == 5 and logged(again, "eval_accuracy") == accuracies[:5]
    assert all(torch.equal(weight, best[name]) for name, weight in weights_of(again).items())


def test_folded_validation_ends_after_its_epochs(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=3, fold_validation=True)
    trainer.train()
    assert logged(trainer, "eval_accuracy") == [] and trainer.state.global_step == 3
    last = load_file(tmp_path / "checkpoint-3/model.safetensors")
    assert all(torch.equal(weight, last[name]) for name, weight in weights_of(trainer).items())


def test_a_nan_in_validation_ends_the_run(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, max_steps=2)
    tokens = trainer.eval_dataset.tokens
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", _nan_for(tokens[7]["label"]))
    with pytest.raises(ValueError, match="The loss of image .* is nan"):
        trainer.evaluate()
    assert logged(trainer, "eval_accuracy") == []


def _nan_for(label: int):
    cross_entropy = torch.nn.functional.cross_entropy

    def spoilt(logits, labels, reduction="mean", **kwargs):
        losses = cross_entropy(logits, labels, reduction=reduction, **kwargs)
        return torch.where(labels == label, torch.nan, losses) if reduction == "none" else losses

    return spoilt


# Which images


def labelled(tokens, **options):
    return labelled_data(FinetuneArguments(**options), tokens)


def test_subsets_of_train():
    labels = [0] * 10 + [1] * 6 + [2] * 4
    tokens = tokens_of(labels=labels)
    whole, few, other = (
        labelled(tokens, **options)
        for options in ({}, {"labels_per_class": 2}, {"labels_per_class": 2, "subset_seed": 1})
    )
    assert len(whole.splits["train"]) == 20 and whole.rows is None and whole.names == ["class 0", "class 1", "class 2"]
    assert few.splits["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    rows = few.splits["train"].tokens["input_ids"]
    assert [list(row) for row in rows] == [list(tokens["train"][int(row)]["input_ids"]) for row in few.rows]
    assert few.rows.tolist() != other.rows.tolist()
    some = labelled(tokens, max_train_images=15)
    assert len(some.splits["train"]) == 15 and len(some.splits["test"]) == 20
    assert some.rows.tolist() == sorted(set(some.rows.tolist()))


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ({"labels": [0] * 20}, {"labels_per_class": 1}, "class 1 has 0"),
        ({"labels": [0] * 17 + [1, 2, 2]}, {"labels_per_class": 2}, "class 1 has 1"),
        ({}, {"max_train_images": 21}, "`max_train_images` is 21, but there are 20"),
        ({"labels": [0] * 19 + [1]}, {"max_train_images": 3}, "has no image among the 3 of `max_train_images`"),
    ],
)
def test_subsets_that_cannot_be(tokens, options, message):
    with pytest.raises(ValueError, match=message):
        labelled(tokens_of(**tokens), **options)


def test_validation_is_needed_to_stop():
    tokens = tokens_of()
    del tokens["validation"]
    with pytest.raises(ValueError, match="no validation split to stop by"):
        labelled(tokens)
    assert set(labelled(tokens, fold_validation=True).splits) == {"train", "test"}


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("causal", {"mask_rate": 0.2}, "`mask_rate` has no effect: nowhere is a next-pixel model"),
        ("causal", {"num_masks": 2}, "`num_masks` has no effect"),
        ("causal", {"pooler_layer": 3}, "`pooler_layer` must be from 0 to 2, the final norm of nowhere, got 3"),
        ("causal", {"augmentation": "crop"}, "padding"),
        ("causal", {"max_images": 3}, "`max_images` has no effect without `dataset_name`"),
        ("causal", {"subset_seed": 3}, "`subset_seed` has no effect without"),
        ("causal", {"augmentation": "random_resized_crop"}, "give `dataset_name`, without `streaming`"),
        (
            "causal",
            {"augmentation": "random_resized_crop", "dataset_name": "digits"},
            "has no centre crop. Fit one with `crop_size`",
        ),
        ("causal", {"total_batch_size": 9, "per_device_train_batch_size": 2}, "`total_batch_size` must be"),
    ],
)
def test_options_that_are_refused(head, options, message):
    with pytest.raises(ValueError, match=message):
        _check(FinetuneArguments(**{"learning_rate": 0.1, "augmentation": "none"} | options), checkpoint_of(head))


def test_the_papers_defaults():
    """Sections 3.4 and 4.6: batch 128, Adam (0.9, 0.95), both losses at weight 1, 15 % hidden, five masks."""
    options = {"learning_rate": 0.1, "augmentation": "none"}
    settings = _check(FinetuneArguments(**options), checkpoint_of("masked"))
    assert (settings.mask_rate, settings.num_masks, settings.generative_loss_weight) == (0.15, 5, 1.0)
    assert (settings.total_batch_size, settings.adam_beta1, settings.adam_beta2) == (128, 0.9, 0.95)
    assert (settings.dropout, settings.weight_decay, settings.warmup_epochs, settings.layer_decay) == (0, 0, 0, 1)
    scratch = _check(FinetuneArguments(from_scratch=True, **options), checkpoint_of("causal"))
    assert scratch.generative_loss_weight == 0 and scratch.mask_rate is None
    assert Path(settings.output_dir) == Path("outputs/finetune")
