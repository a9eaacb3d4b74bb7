"""Training of online probes: the rule, the choice of a rate, and an interruption."""

import math

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import random_tokens, tiny_causal, tiny_masked
from transformers import TrainerCallback

from hf_igpt import IGPTImageProcessor
from hf_igpt.data.masking import Masking
from hf_igpt.evaluation.features import extract_features
from hf_igpt.training import online_probing
from hf_igpt.training.online_probe_arguments import OnlineProbeOptions
from hf_igpt.training.online_probing import OnlineProbeSettings, train_online_probes


CLASSES, COUNT = 3, 48


@pytest.fixture
def processor():
    palette = np.random.default_rng(0).integers(0, 256, (10, 3))
    return IGPTImageProcessor(size={"height": 3, "width": 4}, palette=palette)


@pytest.fixture(scope="module")
def data():
    """Tokens and labels of three splits; the class is the mean of an image's tokens, which a probe can read."""
    config = tiny_causal().config
    feature = datasets.Sequence(datasets.Value("uint8"), length=12)
    features = datasets.Features({"input_ids": feature, "label": datasets.Value("int64")})
    tokens, labels = {}, {}
    for seed, split in enumerate(("train", "validation", "test")):
        rows = random_tokens(config, COUNT, seed=seed)
        labels[split] = np.digitize(rows.float().mean(dim=1).numpy(), [4.0, 5.0])
        columns = {"input_ids": rows.tolist(), "label": labels[split].tolist()}
        tokens[split] = datasets.Dataset.from_dict(columns, features=features)
    return tokens, labels


def train(folder, data, processor, model=None, options=None, labels=None, **settings):
    model = tiny_causal(torch.float32) if model is None else model
    settings = {"solver": "sgd", "num_classes": CLASSES, "layers": [0, 2]} | settings
    options = {"max_steps": 4, "total_batch_size": COUNT, "learning_rates": [0.3, 0.1]} | (options or {})
    return train_online_probes(
        model,
        processor,
        data[0],
        data[1] if labels is None else labels,
        OnlineProbeSettings(**settings),
        OnlineProbeOptions(**options),
        folder,
        {"run": "test"},
    )


def test_sgd_is_the_paper_s_rule(tmp_path, data, processor, monkeypatch):
    """Momentum 0.9, a cosine to zero, no clipping; with all images in a batch, so that their order doesn't matter."""
    monkeypatch.setattr(online_probing, "OnlineProbes", Recorder)
    model, steps, rate = tiny_causal(torch.float32), 5, 10.0
    options = {"max_steps": steps, "learning_rates": [rate, 0.1], "weight_decay": 0.01}
    rows = train(tmp_path / "run", data, processor, model, options, standardize=False)["layers"]
    labels = torch.from_numpy(data[1]["train"])
    for row, layer in enumerate((0, 2)):
        values = {
            split: torch.from_numpy(extract_features(model, np.array(data[0][split]["input_ids"]))[layer])
            for split in ("train", "validation")
        }
        parameters = [torch.zeros(24, CLASSES), torch.zeros(CLASSES)]
        momenta = [torch.zeros_like(parameter) for parameter in parameters]
        for step in range(steps):
            for parameter in parameters:
                parameter.requires_grad_(True).grad = None
            F.cross_entropy(values["train"] @ parameters[0] + parameters[1], labels).backward()
            with torch.no_grad():
                for parameter, momentum in zip(parameters, momenta, strict=True):
                    momentum.mul_(0.9).add_(parameter.grad + 0.01 * parameter)
                    parameter -= rate * 0.5 * (1 + math.cos(math.pi * step / steps)) * momentum
        heads = Recorder.last.heads[0]
        assert parameters[0].abs().max() > 1
        torch.testing.assert_close(heads.weight[row], parameters[0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(heads.bias[row], parameters[1], atol=1e-3, rtol=1e-3)
        if rows[row]["learning_rate"] == rate:
            loss = F.cross_entropy(
                values["validation"] @ parameters[0] + parameters[1], torch.from_numpy(data[1]["validation"])
            )
            assert rows[row]["validation_loss"] == pytest.approx(loss.item(), rel=1e-3)


class Recorder(online_probing.OnlineProbes):
    """Remembers the probes that were trained."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Recorder.last = self


@pytest.mark.parametrize("solver", ["sgd", "attentive"])
def test_probes_learn_what_the_features_tell(tmp_path, data, processor, solver):
    options = {"max_steps": 150, "total_batch_size": 8, "learning_rates": [0.1, 0.01, 1e-6]}
    found = train(tmp_path / "run", data, processor, options=options, solver=solver, layers=[0, 1, 2])
    assert [row["layer"] for row in found["layers"]] == [0, 1, 2]
    # Around a third of the images is right by chance.
    assert found["best"]["validation_accuracy"] > 0.6 and found["best"]["test_accuracy"] > 0.6
    assert found["best"]["learning_rate"] > 1e-6
    assert found["optimizer_steps"] == 150


def test_the_rate_is_chosen_on_validation_and_test_decides_nothing(tmp_path, data, processor):
    first = train(tmp_path / "a", data, processor)["layers"]
    other = data[1] | {"test": (data[1]["test"] + 1) % CLASSES}
    second = train(tmp_path / "b", data, processor, labels=other)["layers"]
    assert [row["test_accuracy"] for row in first] != [row["test_accuracy"] for row in second]
    for a, b in zip(first, second, strict=True):
        assert {k: v for k, v in a.items() if k != "test_accuracy"} == {
            k: v for k, v in b.items() if k != "test_accuracy"
        }
    single = [
        train(tmp_path / str(rate), data, processor, options={"learning_rates": [rate]})["layers"]
        for rate in (0.3, 0.1)
    ]
    for number, row in enumerate(first):
        candidates = [rows[number] for rows in single]
        best = max(candidates, key=lambda one: (one["validation_accuracy"], -one["validation_loss"]))
        assert row["learning_rate"] == best["learning_rate"]
        assert row["validation_loss"] == pytest.approx(best["validation_loss"], rel=1e-4)


def test_masks_are_drawn_anew_and_vote_in_the_end(tmp_path, data, processor):
    model = tiny_masked(torch.float32)
    masking = Masking(12, 0.3, 0)
    found = train(tmp_path / "run", data, processor, model, masking=masking, num_masks=3)
    for row in found["layers"]:
        assert row["ensemble_masks"] == 3
        assert 0 <= row["ensemble_test_accuracy"] <= 1


class _Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_interrupted_it_goes_on_and_ends_the_same(tmp_path, data, processor, monkeypatch):
    options = {"max_steps": 7, "total_batch_size": 8, "save_steps": 2, "augmentation": "crop_flip"}
    options["augmentation_padding"] = 1
    whole = train(tmp_path / "whole", data, processor, options=options)
    build = online_probing._build_trainer

    def build_killed(*args):
        trainer = build(*args)
        trainer.add_callback(_Kill())
        return trainer

    monkeypatch.setattr(online_probing, "_build_trainer", build_killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", data, processor, options=options)
    assert (tmp_path / "run/checkpoint-4").is_dir()
    started = []
    monkeypatch.setattr(online_probing, "_build_trainer", lambda *args: started.append(build(*args)) or started[-1])
    assert train(tmp_path / "run", data, processor, options=options) == whole
    assert started[0].state.global_step == 7


def test_a_rate_at_the_end_of_those_tried_is_said(tmp_path, data, processor, caplog):
    train(tmp_path / "run", data, processor, options={"learning_rates": [1e-3, 1e-4]})
    assert "at an end of those tried" in caplog.text
