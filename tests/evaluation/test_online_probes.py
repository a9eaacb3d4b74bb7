"""Probes trained while the backbone runs: what they read, what trains, and what they say."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import random_tokens, tiny_causal, tiny_masked

from hf_igpt.data.masking import Masking
from hf_igpt.evaluation.features import concatenated, extract_features
from hf_igpt.evaluation.online_probes import OnlineProbes, class_nats, online_votes


CLASSES, LAYERS = 3, 3
MODELS = {"causal": tiny_causal, "masked": tiny_masked}


def randomized(probes: OnlineProbes, seed: int = 0) -> OnlineProbes:
    """Classifiers start at zero, where every test of what they say would pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in probes.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return probes


@pytest.mark.parametrize("concatenate", [1, 2])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_linear_probes_read_the_features_of_extract_features(kind, normed, concatenate):
    model = MODELS[kind](torch.float32)
    tokens = random_tokens(model.config, batch=6)
    masking = Masking(12, 0.3, 0) if kind == "masked" else None
    mask = None if masking is None else torch.from_numpy(masking(0, np.arange(6)))
    layers = [2, 0]
    probes = randomized(OnlineProbes(model, CLASSES, layers, 2, normed=normed, concatenate=concatenate))
    features = extract_features(model, tokens.numpy(), masking=masking, normed=normed)
    logits = probes.logits(tokens, mask)
    assert logits.shape == (2, len(layers), 6, CLASSES)
    assert (logits[:, :, 0] - logits[:, :, 1]).abs().max() > 0.1
    for rate, heads in enumerate(probes.heads):
        for row, layer in enumerate(layers):
            values = torch.from_numpy(concatenated(features, concatenate, layer))
            expected = values @ heads.weight[row] + heads.bias[row]
            torch.testing.assert_close(logits[rate, row], expected, atol=1e-5, rtol=1e-5)


def test_attentive_probes_are_what_a_loop_over_heads_and_images_gives():
    model = tiny_causal(torch.float32)
    tokens = random_tokens(model.config, batch=4)
    probes = randomized(OnlineProbes(model, CLASSES, range(LAYERS), 1, attentive=True, num_heads=4))
    logits = probes.logits(tokens)[0]
    states = model.transformer.encode(tokens, output_hidden_states=True)
    backbone, heads = model.transformer, probes.heads[0]
    for layer in range(LAYERS):
        normed = (
            backbone.h[layer].ln_1(states.hidden_states[layer]) if layer < LAYERS - 1 else states.last_hidden_state
        )
        for image in range(4):
            pooled = []
            for head in range(4):
                weights = torch.exp(normed[image] @ heads.query[layer, head])
                pooled.append((weights / weights.sum()) @ normed[image] @ heads.value[layer, head])
            expected = torch.cat(pooled) @ heads.weight[layer] + heads.bias[layer]
            torch.testing.assert_close(logits[layer, image], expected, atol=1e-4, rtol=1e-4)


def test_attentive_probes_start_as_mean_pooling():
    model = tiny_causal(torch.float32)
    tokens = random_tokens(model.config, batch=4)
    probes = OnlineProbes(model, CLASSES, range(LAYERS), 1, attentive=True)
    heads = probes.heads[0]
    with torch.no_grad():
        heads.weight.normal_()
    for layer, values in enumerate(extract_features(model, tokens.numpy())):
        projected = torch.einsum("bc,hcd->bhd", torch.from_numpy(values), heads.value[layer]).flatten(1)
        torch.testing.assert_close(probes.logits(tokens)[0, layer], projected @ heads.weight[layer])


@pytest.mark.parametrize("attentive", [False, True])
def test_every_probe_learns_and_nothing_of_the_backbone(attentive):
    model = tiny_causal(torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probes = randomized(OnlineProbes(model, CLASSES, range(LAYERS), 2, attentive=attentive))
    assert not any("transformer" in name for name, _ in probes.named_parameters())
    probes(random_tokens(model.config, batch=8), torch.arange(8) % CLASSES)["loss"].backward()
    for name, parameter in probes.named_parameters():
        assert parameter.grad.abs().flatten(1).amax(dim=1).min() > 1e-6, name
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("attentive", [False, True])
def test_a_probe_does_not_depend_on_the_others(attentive):
    model = tiny_causal(torch.float32)
    tokens, labels = random_tokens(model.config, batch=8), torch.arange(8) % CLASSES
    alone = randomized(OnlineProbes(model, CLASSES, [1], 1, attentive=attentive))
    many = randomized(OnlineProbes(model, CLASSES, [0, 1], 2, attentive=attentive), seed=1)
    with torch.no_grad():
        for mine, theirs in zip(alone.heads[0].parameters(), many.heads[1].parameters(), strict=True):
            theirs[1] = mine[0]
    alone(tokens, labels)["loss"].backward()
    many(tokens, labels)["loss"].backward()
    for mine, theirs in zip(alone.heads[0].parameters(), many.heads[1].parameters(), strict=True):
        torch.testing.assert_close(mine.grad[0], theirs.grad[1])


@pytest.mark.parametrize("attentive", [False, True])
def test_standardized_features_have_mean_0_and_variance_1(attentive):
    model = tiny_causal(torch.float32)
    tokens = random_tokens(model.config, batch=50)
    probes = OnlineProbes(model, CLASSES, range(LAYERS), 1, attentive=attentive)
    probes.standardize(tokens.numpy(), None, batch_size=7)
    states = model.transformer.encode(tokens, output_hidden_states=True)
    values = model.transformer.h[1].ln_1(states.hidden_states[1])
    values = values.flatten(0, 1) if attentive else values.mean(dim=1)
    scaled = (values - probes.mean[1]) * probes.scale[1]
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(24), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(dim=0, correction=0), torch.ones(24), atol=1e-3, rtol=0)


def test_votes_and_losses_do_not_depend_on_the_batches():
    model = tiny_masked(torch.float32)
    masking = Masking(12, 0.5, 0)
    tokens = random_tokens(model.config, batch=10)
    labels = np.arange(10) % CLASSES
    probes = randomized(OnlineProbes(model, CLASSES, [0, 2], 2))
    probes.standardize(tokens.numpy(), masking, batch_size=5)
    votes, nats = online_votes(probes, tokens.numpy(), labels, masking=masking, mask=(1, 3), batch_size=3)
    assert (votes != votes[..., :1]).any(axis=-1).all()
    hidden = torch.from_numpy(masking(0, np.arange(10), (1, 3)))
    logits = probes.logits(tokens, hidden)
    np.testing.assert_array_equal(votes, logits.argmax(dim=-1).numpy())
    expected = [
        F.cross_entropy(logits[rate, row], torch.from_numpy(labels), reduction="none").detach().numpy()
        for rate in range(2)
        for row in range(2)
    ]
    np.testing.assert_allclose(nats.reshape(4, 10), expected, rtol=1e-5)
    np.testing.assert_allclose(class_nats(logits, torch.from_numpy(labels)).detach().numpy(), nats, rtol=1e-5)
    other, _ = online_votes(probes, tokens.numpy(), labels, masking=masking, mask=(2, 3))
    assert (other != votes).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [3]}, "`layers` must be from 0 to 2, got 3"),
        ({"concatenate": 4}, "`concatenate` must be from 1 to the 3 layers, got 4"),
        ({"attentive": True, "num_heads": 5}, "`num_heads` must divide the width 24, got 5"),
        ({"attentive": True, "concatenate": 2}, "pools one layer, got `concatenate` 2"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OnlineProbes(tiny_causal(torch.float32), CLASSES, **({"layers": [1], "num_rates": 1} | options))
