import math

import numpy as np
import pytest
import torch
from tiny_models import random_tokens, randomize_, tiny_config

from hf_igpt import ImageGPTForImageClassification
from hf_igpt.data.masking import Masking
from hf_igpt.evaluation.classification import Classification, classify


CLASSES = 3


def tiny_classifier(**overrides) -> ImageGPTForImageClassification:
    model = ImageGPTForImageClassification(tiny_config(num_labels=CLASSES, **overrides))
    return randomize_(model).double().eval()


def images(model, count: int = 11) -> tuple[np.ndarray, np.ndarray]:
    tokens = random_tokens(model.config, count).numpy()
    return tokens, tokens.sum(axis=1) % CLASSES


def masking_of(model) -> Masking | None:
    return None if model.config.is_causal else Masking(model.config.n_positions, 0.4, seed=3)


@pytest.mark.parametrize("pooler_layer", [None, 1])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_every_image_gets_what_the_model_says_of_it_alone(is_causal, pooler_layer, weight):
    model = tiny_classifier(is_causal=is_causal, pooler_layer=pooler_layer, generative_loss_weight=weight)
    (tokens, labels), masking = images(model), masking_of(model)
    classified = classify(model, tokens, labels, masking=masking, batch_size=4)
    assert len(set(classified.votes[0])) > 1 and np.ptp(classified.class_nats) > 0.1
    for image, label in enumerate(labels):
        mask = None if masking is None else torch.from_numpy(masking(0, np.array([image])))
        batch = {"input_ids": torch.from_numpy(tokens[image : image + 1]), "labels": torch.tensor([label])}
        outputs = model(**batch, bool_masked_pos=mask)
        assert classified.votes[0, image] == outputs.logits.argmax()
        assert classified.class_nats[0, image] == pytest.approx(outputs.class_loss.item(), rel=1e-9)
        if weight:
            assert classified.generative_nats[0, image] == pytest.approx(outputs.generative_loss.item(), rel=1e-6)
    assert weight or classified.generative_nats is None
    whole = classify(model, tokens, labels, masking=masking, batch_size=11)
    assert whole.loss == pytest.approx(classified.loss, rel=1e-12)
    parts = whole.class_loss + weight * (whole.generative_loss or 0)
    assert whole.loss == pytest.approx(parts, rel=1e-12) and (whole.votes == classified.votes).all()


def test_each_mask_votes_on_its_own():
    model = tiny_classifier(is_causal=False)
    (tokens, labels), masking = images(model), masking_of(model)
    classified = classify(model, tokens, labels, masking=masking, num_masks=3, batch_size=4)
    assert classified.votes.shape == classified.class_nats.shape == classified.generative_nats.shape == (3, 11)
    for number in range(3):
        masks = torch.from_numpy(masking(0, np.arange(11), (number, 3)))
        outputs = model(torch.from_numpy(tokens), torch.from_numpy(labels), bool_masked_pos=masks)
        np.testing.assert_array_equal(classified.votes[number], outputs.logits.argmax(-1))
        assert classified.class_nats[number].mean() == pytest.approx(outputs.class_loss.item(), rel=1e-9)
        assert classified.generative_nats[number].mean() == pytest.approx(outputs.generative_loss.item(), rel=1e-6)
    assert len(np.unique(classified.class_nats.round(9))) == 33


def test_a_majority_counts_once():
    votes = np.array([[0, 1, 1, 2], [0, 1, 2, 2], [1, 0, 2, 0]])
    classified = Classification(np.array([0, 1, 1, 2]), votes, np.ones((3, 4)), np.full((3, 4), 2.0), 3, 0.5)
    assert classified.accuracy() == 3 / 4
    assert classified.metrics() == {
        "accuracy": 0.75,
        "class_loss": 1.0,
        "generative_loss": 2.0,
        "num_images": 4,
        "ensemble_masks": 3,
        "single_mask_accuracy": pytest.approx(7 / 12),
    }
    assert classified.loss == 2.0
    tied = Classification(np.zeros(2000, int), np.repeat([[0], [1]], 2000, axis=1), np.ones((2, 2000)), None, 3)
    assert tied.accuracy(seed=1) == pytest.approx(0.5, abs=0.05) and tied.accuracy(1) != tied.accuracy(2)
    assert tied.metrics()["generative_loss"] is None


@pytest.mark.parametrize("weights", ["score", "lm_head"])
def test_a_loss_that_is_not_finite_is_an_error(weights):
    model = tiny_classifier(pooler_layer=2)
    tokens, labels = images(model)
    tokens[:, 0] = 0
    tokens %= 9
    tokens[4, 0] = 9
    with torch.no_grad():
        model.transformer.wte.weight[9] = math.nan
        getattr(model, weights).weight[0] *= 2
    with pytest.raises(ValueError, match="The loss of image 4 is nan"):
        classify(model, tokens, labels)


@pytest.mark.parametrize(
    ("is_causal", "options", "message"),
    [
        (True, {"masking": Masking(12)}, "A next-pixel model has no masks"),
        (True, {"num_masks": 2}, "`num_masks` must be 1, or more with a `masking`, got 2"),
        (False, {"masking": Masking(12), "num_masks": 0}, "`num_masks` must be 1"),
        (True, {"labels": np.array([0, 3])}, r"2 classes from 0 to 2, got an array of shape \[2\] from 0 to 3"),
        (True, {"labels": np.array([0, -1])}, "from -1 to 0"),
        (True, {"labels": np.array([0])}, r"of shape \[1\]"),
    ],
)
def test_what_is_refused(is_causal, options, message):
    model = tiny_classifier(is_causal=is_causal)
    with pytest.raises(ValueError, match=message):
        classify(model, images(model, 2)[0], **({"labels": np.array([0, 1])} | options))
