"""The norm and the activation in blocks, and what is recomputed for the backward pass, against plain autograd."""

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import random_tokens, tiny_causal
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from hf_igpt import functional_igpt, modeling_igpt
from hf_igpt.functional_igpt import quick_gelu, recomputed_for_backward, rms_norm


def plain_rms_norm(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def plain_quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


@pytest.fixture(params=[1 << 17, 40, 1], ids=lambda size: f"blocks of {size}")
def block_size(request, monkeypatch):
    """One block, several with a shorter last one, and one for every row."""
    monkeypatch.setattr(functional_igpt, "BLOCK_ELEMENTS", request.param)


def value_and_gradients(function, *inputs):
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = function(*inputs)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (output * direction.to(output.dtype)).sum().backward()
    return [output.detach(), *(tensor.grad for tensor in inputs)]


@pytest.mark.parametrize("shape", [(3, 5, 16), (7, 16), (16,), (1, 1, 16)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_norm_and_activation_equal_plain_autograd(block_size, shape, dtype, tolerance):
    x, weight = torch.randn(shape, dtype=torch.float64), 1 + 0.3 * torch.randn(16, dtype=torch.float64)
    pairs = [
        (lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: plain_rms_norm(x, w, 1e-5), (x, weight)),
        (quick_gelu, plain_quick_gelu, (x,)),
    ]
    for ours, plain, inputs in pairs:
        actual = value_and_gradients(ours, *(tensor.to(dtype) for tensor in inputs))
        for value, expected in zip(actual, value_and_gradients(plain, *inputs), strict=True):
            assert value.dtype == dtype
            torch.testing.assert_close(value.double(), expected, atol=tolerance, rtol=tolerance)


def test_gradients_by_finite_differences(block_size):
    x, weight = torch.randn(4, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x.requires_grad_(), weight.requires_grad_()))
    assert torch.autograd.gradcheck(quick_gelu, (x,))


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8), st.floats(1e-8, 1e-2))
def test_norm_of_any_row_is_that_of_float64(row, eps):
    x = torch.tensor([row])
    expected = plain_rms_norm(x.double(), torch.ones(len(row), dtype=torch.float64), eps)
    torch.testing.assert_close(rms_norm(x, torch.ones(len(row)), eps).double(), expected, atol=1e-5, rtol=1e-5)


def test_norm_has_no_mean_and_no_bias():
    x = torch.full((1, 8), 3.0, dtype=torch.float64)
    torch.testing.assert_close(rms_norm(x, torch.ones(8, dtype=torch.float64), 0.0), torch.ones_like(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norm_of_half_precision_has_its_statistics_in_float32(dtype):
    x, weight = (torch.randn(3, 4, 64) * 1000).to(dtype), torch.randn(64).to(dtype)
    normed = rms_norm(x, weight, 1e-5)
    assert normed.dtype == dtype
    expected = plain_rms_norm(x.double(), weight.double(), 1e-5)
    torch.testing.assert_close(normed.double(), expected, atol=0, rtol=3 * torch.finfo(dtype).eps)


def test_inputs_that_are_not_contiguous_or_of_two_types_equal_plain_autograd():
    x, weight = torch.randn(5, 16, 3, dtype=torch.float64).transpose(1, 2), torch.randn(16, dtype=torch.float64)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), plain_rms_norm(x, weight, 1e-5))
    torch.testing.assert_close(quick_gelu(x), plain_quick_gelu(x))
    mixed = rms_norm(x.contiguous().float(), weight.half(), 1e-5)
    torch.testing.assert_close(mixed.double(), plain_rms_norm(x, weight, 1e-5), atol=2e-3, rtol=2e-3)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes that are still held by someone of all that operators made."""

    def __init__(self):
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.made[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        return output

    def count(self) -> int:
        return sum(nbytes for storage, nbytes in self.made.values() if not storage.expired())


def held_after_forward(call) -> tuple[int, torch.Tensor]:
    with LiveBytes() as live:
        loss = call()
    return live.count(), loss


@pytest.mark.parametrize("bias", [True, False])
def test_recomputed_input_of_a_linear_layer_equals_the_plain_one_and_is_not_held(block_size, bias):
    layer = torch.nn.Linear(16, 4, bias=bias).double()
    x, held = torch.randn(8, 32, 16, dtype=torch.float64), {}
    results = {}
    for enabled in (True, False):
        inputs = x.clone().requires_grad_()

        def forward(enabled=enabled, inputs=inputs):
            with recomputed_for_backward(quick_gelu, inputs, enabled=enabled) as activated:
                return layer(activated).square().sum()

        layer.zero_grad()
        held[enabled], loss = held_after_forward(forward)
        loss.backward()
        results[enabled] = [loss, inputs.grad, *(parameter.grad.clone() for parameter in layer.parameters())]
    for recomputed, plain in zip(results[True], results[False], strict=True):
        assert torch.equal(recomputed, plain)
    assert held[False] - held[True] == x.numel() * 8


def test_other_tensors_saved_beside_it_are_left_alone():
    layer = torch.nn.Linear(6, 6).double()
    x, other = torch.randn(6, 6, dtype=torch.float64, requires_grad=True), torch.randn(6, 6, dtype=torch.float64)
    with recomputed_for_backward(quick_gelu, x) as activated:
        loss = (layer(activated) * other.exp() * activated.t()).sum()
    loss.backward()
    gradient, x.grad = x.grad, None
    activated = plain_quick_gelu(x)
    (layer(activated) * other.exp() * activated.t()).sum().backward()
    torch.testing.assert_close(gradient, x.grad)


def test_the_models_recomputation_changes_no_gradient_and_holds_less(monkeypatch):
    tokens = random_tokens(tiny_causal().config, batch=8)

    def run():
        model = tiny_causal().train()
        held, loss = held_after_forward(lambda: model(labels=tokens).loss)
        loss.backward()
        return held, loss, [parameter.grad for parameter in model.parameters()]

    held, loss, gradients = run()

    @contextlib.contextmanager
    def kept(function, *inputs, enabled=True):
        yield function(*inputs)

    monkeypatch.setattr(modeling_igpt, "recomputed_for_backward", kept)
    plain_held, plain_loss, plain_gradients = run()
    assert torch.equal(loss, plain_loss)
    for gradient, plain in zip(gradients, plain_gradients, strict=True):
        assert torch.equal(gradient, plain)
    # Two layers: two normed inputs (24 wide) and one activation (40 wide) of 8 x 12 tokens in float64.
    assert plain_held - held >= 2 * (24 + 24 + 40) * 8 * 12 * 8


def test_without_gradients_nothing_is_recomputed():
    calls = []

    def counted(x):
        calls.append(1)
        return plain_quick_gelu(x)

    with torch.no_grad(), recomputed_for_backward(counted, torch.randn(3, requires_grad=True)) as output:
        output.sum()
    assert calls == [1]


def test_small_tensors_take_torchs_own_steps_and_large_ones_blocks(monkeypatch):
    monkeypatch.setattr(functional_igpt, "SMALL_ELEMENTS", 100)
    small, large = (torch.randn(rows, 10, requires_grad=True) for rows in (9, 10))
    weight = torch.ones(10, requires_grad=True)
    for tensor, in_blocks in ((small, False), (large, True)):
        assert ("Block" in type(functional_igpt.rms_norm(tensor, weight, 1e-5).grad_fn).__name__) == in_blocks
        assert ("Block" in type(functional_igpt.quick_gelu(tensor).grad_fn).__name__) == in_blocks
