"""One path for both objectives: what they validate with is what they train on."""

import pytest
from fault_harness import run_config, token_dataset
from tiny_models import randomize_
from transformers import TrainingArguments

from hf_igpt import IGPTImageProcessor, ImageGPTConfig
from hf_igpt.data.sources import load_images
from hf_igpt.training.arguments import PretrainArguments
from hf_igpt.training.objectives import collator, eval_loss, model_class, validation_metrics
from hf_igpt.training.pretraining import _train_dataset
from hf_igpt.training.trainer import IGPTTrainer


def trainer_of(objective: str, folder, batch: int, **arguments) -> tuple[IGPTTrainer, PretrainArguments]:
    options = PretrainArguments(objective=objective, **arguments)
    config = run_config(is_causal=objective == "next_pixel")
    settings = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "remove_unused_columns": False}
    trainer = IGPTTrainer(
        randomize_(model_class(config)(config)).double(),
        TrainingArguments(str(folder), per_device_eval_batch_size=batch, prediction_loss_only=True, **settings),
        eval_dataset=token_dataset(),
        data_collator=collator(options, config),
    )
    return trainer, options


@pytest.mark.parametrize("batch", [7, 20])
@pytest.mark.parametrize(
    ("objective", "options"),
    [("next_pixel", {}), ("masked", {"mask_rate": 0.3}), ("masked", {"mask_rate": "uniform", "seed": 5})],
)
def test_validation_in_shares_is_trainers_own(tmp_path, objective, options, batch):
    trainer, _ = trainer_of(objective, tmp_path, batch, **options)
    loss = trainer.evaluate()["eval_loss"]
    shared = eval_loss(trainer.model, trainer.eval_dataset.tokens, trainer.data_collator, batch)
    assert loss == pytest.approx(shared, abs=1e-6)
    assert trainer.evaluate()["eval_loss"] == loss, "the masks of validation never change"


@pytest.mark.parametrize("objective", ["next_pixel", "masked"])
def test_training_leaves_the_cache_of_the_config_on(tmp_path, objective):
    trainer, _ = trainer_of(objective, tmp_path / "run", 20)
    trainer.save_model(tmp_path / "model")
    assert ImageGPTConfig.from_pretrained(tmp_path / "model").use_cache


def test_masks_follow_the_options(tmp_path):
    losses = [
        trainer_of("masked", tmp_path, 20, **options)[0].evaluate()["eval_loss"]
        for options in ({}, {"seed": 1}, {"mask_rate": 0.5}, {"mask_rate": "uniform"})
    ]
    assert len({round(loss, 6) for loss in losses}) == 4


def test_final_figures_of_each_objective(tmp_path):
    trainer, options = trainer_of("next_pixel", tmp_path, 20)
    assert "nats_per_token" in validation_metrics(trainer.model, token_dataset().tokens, options)
    for rate, stated in ((0.4, 0.4), ("uniform", 0.15)):
        trainer, options = trainer_of("masked", tmp_path, 20, mask_rate=rate)
        metrics = validation_metrics(trainer.model, token_dataset().tokens, options)
        assert metrics["mask_rate"] == stated and "nats_per_token" not in metrics
        assert metrics["bound_nats_per_token"] > 0 and metrics["masked_nats_per_token"] > 0


def image_run(**options):
    """A processor with a centre crop, and the training images of random crops of the same size."""
    images = load_images("digits", max_images=10)
    palette = [[0, 0, 0], [128, 128, 128], [255, 255, 255]]
    options = {"size": 4, "palette": palette, "do_center_crop": True, "crop_size": 6, "resample": 0} | options
    processor = IGPTImageProcessor(**options)
    arguments = PretrainArguments(augmentation="random_resized_crop", crop_size=6)
    return processor, _train_dataset(arguments, images, processor, None)


def test_random_crops_have_the_size_and_the_filter_of_the_processor():
    processor, dataset = image_run()
    assert (dataset.crop_size, dataset.shorter_side) == (6, (7, 10))
    assert dataset.processor.resample == processor.resample == 0 and not dataset.processor.do_center_crop
    assert dataset[0]["input_ids"].shape == (16,)
    with pytest.raises(ValueError, match="has no centre crop. Fit one with `crop_size`"):
        image_run(do_center_crop=False, crop_size=None)
