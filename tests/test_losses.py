"""Losses in blocks: the values and gradients of a plain cross entropy, in less memory."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_models import random_tokens, randomize_, tiny_causal, tiny_config, tiny_masked
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_igpt import ImageGPTForImageClassification, losses_igpt
from hf_igpt.losses_igpt import head_nats, mean_over, token_nats


BATCH, TOKENS, VALUES, WIDTH = 3, 50, 40, 24


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 7 rows, so that 150 rows leave a short last one."""
    monkeypatch.setattr(losses_igpt, "CPU_BLOCK_LOGITS", 7 * VALUES)
    monkeypatch.setattr(losses_igpt, "MAX_HEAD_BLOCKS", 30)


def random_labels(ignored: bool = False) -> torch.Tensor:
    labels = torch.randint(0, VALUES, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    return labels.masked_fill(labels % 5 == 0, -100) if ignored else labels


def random_normal(*shape: int, dtype: torch.dtype, seed: int = 1) -> torch.Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return numbers.to(dtype).requires_grad_()


def plain_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.double().flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)


# Rounding of the gradient to the type of the logits, and of sums to float32.
ACCURACY = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.mark.parametrize("dtype", ACCURACY)
@pytest.mark.parametrize("ignored", [False, True])
def test_blocks_have_the_value_and_the_gradient_of_cross_entropy(dtype, ignored):
    labels, weights = random_labels(ignored), torch.linspace(0.5, 2, TOKENS)
    logits = random_normal(BATCH, TOKENS, VALUES, dtype=dtype)
    nats, expected = token_nats(logits, labels), plain_nats(logits, labels)
    assert nats.dtype == torch.promote_types(torch.float32, dtype)
    torch.testing.assert_close(nats.double(), expected, atol=2e-6 if dtype != torch.float64 else 1e-12, rtol=0)
    (gradient,) = torch.autograd.grad((nats * weights).sum(), logits)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), logits)
    assert expected_gradient.abs().max() > 0.5
    torch.testing.assert_close(gradient, expected_gradient, atol=ACCURACY[dtype], rtol=ACCURACY[dtype])
    assert (gradient[labels == -100] == 0).all()


@pytest.mark.parametrize("dtype", ACCURACY)
def test_a_head_in_blocks_has_the_gradients_of_the_whole(dtype):
    head = torch.nn.Linear(WIDTH, VALUES, bias=False).to(dtype)
    hidden = random_normal(BATCH, TOKENS, WIDTH, dtype=dtype)
    labels = random_labels()
    nats, expected = head_nats(head, hidden, labels, VALUES), token_nats(head(hidden), labels)
    # Half-precision products of other sizes may round differently.
    loose = ACCURACY[dtype] * (10 if dtype.itemsize == 2 else 1)
    torch.testing.assert_close(nats, expected, atol=loose, rtol=loose)
    for gradient, whole in zip(
        torch.autograd.grad(nats.sum(), (hidden, head.weight)),
        torch.autograd.grad(expected.sum(), (hidden, head.weight)),
        strict=True,
    ):
        assert whole.abs().max() > 0.1
        torch.testing.assert_close(gradient, whole, atol=loose * whole.abs().max().item(), rtol=loose)


def test_a_sum_over_items_adds_up_and_the_mean_leaves_out_ignored_labels():
    labels = random_labels(ignored=True)
    logits = random_normal(BATCH, TOKENS, VALUES, dtype=torch.float64)
    nats, count = token_nats(logits, labels), int((labels != -100).sum())
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(mean_over(nats, labels, None), expected)
    parts = [mean_over(nats[i : i + 1], labels[i : i + 1], torch.tensor(count)) for i in range(BATCH)]
    torch.testing.assert_close(sum(parts), expected)


def loss_of(head: str, dtype: torch.dtype = torch.float64, **options):
    if head == "causal":
        model = tiny_causal(dtype)
        inputs = {"labels": random_tokens(model.config, 5)}
    elif head == "masked":
        model = tiny_masked(dtype)
        tokens = random_tokens(model.config, 5)
        inputs = {"input_ids": tokens, "bool_masked_pos": tokens % 3 == 0}
    else:
        model = tiny_causal(dtype)
        tokens = random_tokens(model.config, 5)
        inputs = {"input_ids": tokens, "labels": tokens}
    outputs = model(**inputs, **options)
    outputs.loss.backward()
    return outputs, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("head", ["causal", "masked", "shifted"])
@pytest.mark.parametrize("items", [None, torch.tensor(77)])
def test_without_logits_loss_and_gradients_are_the_same(monkeypatch, head, items):
    monkeypatch.setattr(losses_igpt, "CPU_BLOCK_LOGITS", 1 << 20)
    plain, expected = loss_of(head, num_items_in_batch=items)
    monkeypatch.setattr(losses_igpt, "CPU_BLOCK_LOGITS", 70)
    for options in ({"skip_logits": True}, {}):
        outputs, gradients = loss_of(head, num_items_in_batch=items, **options)
        assert (outputs.logits is None) == ("skip_logits" in options)
        torch.testing.assert_close(outputs.loss, plain.loss, atol=1e-13, rtol=0)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-13, rtol=0, msg=name)


def test_a_classifiers_generative_loss_is_the_plain_one(monkeypatch):
    model = randomize_(ImageGPTForImageClassification(tiny_config(num_labels=3))).double()
    tokens = random_tokens(model.config, 5)
    hidden = model.transformer.encode(tokens).last_hidden_state
    expected = F.cross_entropy(model.lm_head(hidden).flatten(0, 1), tokens.flatten())
    monkeypatch.setattr(losses_igpt, "CPU_BLOCK_LOGITS", 70)
    loss = model(input_ids=tokens, labels=torch.tensor([0, 1, 2, 0, 1])).generative_loss
    torch.testing.assert_close(loss, expected, atol=1e-13, rtol=0)


def test_under_autocast_the_head_computes_in_half_precision(monkeypatch):
    """As Trainer runs bf16: weights in float32, products in bf16, statistics in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        _, expected = loss_of("causal", torch.float32)
        outputs, gradients = loss_of("causal", torch.float32, skip_logits=True)
    assert outputs.loss.dtype == torch.float32
    for name, gradient in gradients.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], atol=0.02 * scale, rtol=0, msg=name)


def test_nothing_to_skip_without_labels():
    for model in (tiny_causal(), tiny_masked()):
        tokens = random_tokens(model.config)
        with pytest.raises(ValueError, match="`skip_logits` leaves only the loss, which needs `labels`"):
            model(input_ids=tokens, skip_logits=True)


# Memory


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes, forward and backward."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def saved_bytes(function, *inputs: torch.Tensor) -> int:
    """Bytes of the storages that the graph of `function(*inputs)` keeps."""
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function(*inputs)
    assert output.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_are_returned_are_kept_once(monkeypatch, dtype):
    labels = random_labels()
    logits = random_normal(BATCH, TOKENS, VALUES, dtype=dtype)
    head_only = logits.nbytes + 2 * labels.nbytes + 4 * labels.numel()
    assert saved_bytes(token_nats, logits, labels) <= head_only
    monkeypatch.setattr(losses_igpt, "CPU_BLOCK_LOGITS", 1 << 20)
    plain = saved_bytes(token_nats, logits, labels)
    assert plain >= BATCH * TOKENS * VALUES * 4 > head_only - logits.nbytes


def test_the_logits_of_all_tokens_are_never_held_where_they_are_skipped():
    head = torch.nn.Linear(WIDTH, VALUES, bias=False)
    hidden, labels = random_normal(BATCH, TOKENS, WIDTH, dtype=torch.float32), random_labels()
    kept = hidden.nbytes + head.weight.nbytes + labels.nbytes
    assert saved_bytes(lambda x: head_nats(head, x, labels, VALUES), hidden) <= kept
    with LargestTensor() as largest:
        head_nats(head, hidden, labels, VALUES).sum().backward()
    assert largest.elements == hidden.numel() < BATCH * TOKENS * VALUES
    with LargestTensor() as largest:
        token_nats(head(hidden), labels).sum().backward()
    assert largest.elements == BATCH * TOKENS * VALUES


@pytest.mark.parametrize("rows", [1, 149, 150, 5000])
def test_the_head_has_a_limited_number_of_blocks(monkeypatch, rows):
    monkeypatch.setattr(losses_igpt, "MAX_HEAD_BLOCKS", 16)
    lengths = []

    def head(x: torch.Tensor) -> torch.Tensor:
        lengths.append(len(x))
        return x

    with torch.no_grad():
        head_nats(head, torch.randn(1, rows, VALUES), torch.zeros(1, rows, dtype=torch.long), VALUES)
    assert sum(lengths) == rows and len(lengths) <= 16
    assert max(lengths) == min(rows, max(7, math.ceil(rows / 16)))
