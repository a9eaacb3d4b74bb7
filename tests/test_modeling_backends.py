"""The same numbers whatever computes them: attention backends, gradient checkpointing, compilation, export, dtypes."""

import copy

import pytest
import torch
from tiny_models import (
    assert_discriminates,
    random_tokens,
    randomize_,
    tiny_causal,
    tiny_config,
    tiny_masked,
    with_start,
)
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import StaticCache

from hf_igpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def loss_and_gradients(model, call=None, **inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = (model if call is None else call)(**inputs).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same(first, second, atol: float) -> None:
    torch.testing.assert_close(first[0], second[0], atol=atol, rtol=0)
    for name, gradient in first[1].items():
        assert gradient.abs().max() > 1e-5, name
        torch.testing.assert_close(gradient, second[1][name], atol=atol, rtol=0, msg=name)


@pytest.mark.parametrize("overrides", [{}, {"use_bias": True, "scale_attn_by_inverse_layer_idx": True}])
def test_trap_no_sdpa_it_equals_eager_in_value_and_every_gradient(overrides):
    model = tiny_causal(**overrides).train()
    assert model.config._attn_implementation == "sdpa"
    tokens = random_tokens(model.config, batch=3)
    sdpa = loss_and_gradients(model, labels=tokens)
    model.set_attn_implementation("eager")
    assert_same(loss_and_gradients(model, labels=tokens), sdpa, atol=1e-12)


@pytest.mark.parametrize("is_causal", [True, False])
def test_flex_attention_equals_sdpa_in_value(is_causal):
    """On a CPU flex attention has no backward; compiling its kernel takes long, so it runs uncompiled."""
    model = randomize_(ImageGPTModel(tiny_config(is_causal=is_causal))).eval()
    tokens = random_tokens(model.config)
    sdpa = model(input_ids=tokens).last_hidden_state
    model.set_attn_implementation("flex_attention")
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        flex = model(input_ids=tokens).last_hidden_state
    torch.testing.assert_close(flex, sdpa, atol=2e-6, rtol=0)


def test_flash_attention_can_be_asked_for():
    model = tiny_causal()
    assert model._supports_flash_attn
    assert model._supports_attention_backend
    with pytest.raises(ImportError, match="FlashAttention"):
        model.set_attn_implementation("flash_attention_2")


class LargeOutputs(TorchDispatchMode):
    """Collects the operators whose output is as large as tokens x tokens."""

    def __init__(self, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.found: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, torch.Tensor) and is_square(tensor.shape, self.tokens):
                self.found.add(str(function))
        return output


def is_square(shape, tokens: int) -> bool:
    return len(shape) >= 2 and tuple(shape[-2:]) == (tokens, tokens)


def test_no_tensor_of_tokens_by_tokens_is_ever_made():
    model = tiny_causal(torch.float32, image_size=[5, 7]).train()
    tokens = random_tokens(model.config)
    with LargeOutputs(35) as mode:
        model(labels=tokens).loss.backward()
    assert not mode.found
    model.set_attn_implementation("eager")
    with LargeOutputs(35) as mode:
        model(labels=tokens).loss.backward()
    assert mode.found


def test_trap_mask_buffers_in_every_layer():
    model = tiny_causal(image_size=[5, 7])
    assert not list(model.buffers())
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_compiled_teacher_forcing_makes_no_mask_either():
    made = []

    def backend(graph, example_inputs):
        made.extend(node for node in graph.graph.nodes if is_square(shape_of(node), 35))
        return graph.forward

    model = tiny_causal(torch.float32, image_size=[5, 7]).train()
    tokens = random_tokens(model.config)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert_same(loss_and_gradients(model, compiled, labels=tokens), loss_and_gradients(model, labels=tokens), 1e-6)
    assert not made


def shape_of(node) -> tuple[int, ...]:
    value = node.meta.get("example_value")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def test_compiled_in_one_graph_equals_eager_in_loss_and_gradients():
    model = tiny_causal().train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    tokens = random_tokens(model.config)
    assert_same(loss_and_gradients(model, compiled, labels=tokens), loss_and_gradients(model, labels=tokens), 1e-12)


def test_compiled_classifier_equals_eager():
    model = randomize_(ImageGPTForImageClassification(tiny_config(num_labels=3))).double().train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    inputs = {"input_ids": random_tokens(model.config), "labels": torch.tensor([2, 0])}
    assert_same(loss_and_gradients(model, compiled, **inputs), loss_and_gradients(model, **inputs), 1e-12)


@torch.no_grad()
def test_compiled_decoding_with_a_static_cache_is_one_graph_for_all_steps():
    model = tiny_causal()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    ids = with_start(model.config, random_tokens(model.config))
    cache = StaticCache(config=model.config, max_cache_len=12)
    steps = [compiled(input_ids=ids[:, [i]], cache=cache, use_cache=True).logits for i in range(12)]
    torch.testing.assert_close(torch.cat(steps, dim=1), model(input_ids=ids).logits)
    # The first call also creates the cache's tensors.
    assert counter.frame_count <= 2


def test_exported_teacher_forcing_equals_eager():
    model = tiny_causal()
    tokens = random_tokens(model.config)
    exported = torch.export.export(model, (), kwargs={"labels": tokens}).module()
    other = random_tokens(model.config, seed=9)
    torch.testing.assert_close(exported(labels=other).logits, model(labels=other).logits)
    torch.testing.assert_close(exported(labels=other).loss, model(labels=other).loss)


def test_exported_decoding_takes_any_number_of_images_and_tokens():
    model = tiny_causal()
    ids = with_start(model.config, random_tokens(model.config))
    dynamic = {"input_ids": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}, "use_cache": None}
    inputs = {"input_ids": ids, "use_cache": False}
    exported = torch.export.export(model, (), kwargs=inputs, dynamic_shapes=dynamic).module()
    for batch, length in ((2, 12), (1, 12), (2, 5)):
        some = ids[:batch, :length]
        torch.testing.assert_close(exported(input_ids=some, use_cache=False).logits, model(input_ids=some).logits)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("head", [ImageGPTForCausalImageModeling, ImageGPTForImageClassification])
def test_gradient_checkpointing_changes_nothing_with_dropout_too(use_reentrant, head):
    config = tiny_config(num_labels=3, pooler_layer=1, embd_pdrop=0.2, resid_pdrop=0.2, attn_pdrop=0.2)
    model = randomize_(head(config)).train()
    tokens = random_tokens(config)
    inputs = {"labels": tokens}
    if head is ImageGPTForImageClassification:
        inputs = {"input_ids": tokens, "labels": torch.tensor([2, 0])}
    torch.manual_seed(3)
    plain = loss_and_gradients(model, **inputs)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert all(block.gradient_checkpointing for block in model.transformer.h)
    torch.manual_seed(3)
    assert_same(loss_and_gradients(model, **inputs), plain, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_half_precision_stays_finite_with_weights_a_hundred_times_the_initial_ones(dtype, backend):
    config = tiny_config(hidden_size=96, intermediate_size=None, num_hidden_layers=6, initializer_range=2.0)
    exact = ImageGPTForCausalImageModeling(config).double().train()
    torch.nn.init.normal_(exact.lm_head.weight, std=0.02)
    tokens = random_tokens(config, batch=4)
    expected = exact(labels=tokens)
    # Squares of these residuals and products of these keys and queries are beyond float16.
    residual = exact.transformer(input_ids=tokens, output_hidden_states=True).hidden_states[-2]
    assert residual.abs().max() > 65504**0.5 * 10
    assert_discriminates(randomize_(copy.deepcopy(exact)))

    model = copy.deepcopy(exact).to(dtype)
    model.set_attn_implementation(backend)
    outputs = model(labels=tokens)
    outputs.loss.backward()
    assert outputs.loss.dtype == torch.float32
    assert outputs.loss.item() == pytest.approx(expected.loss.item(), abs=0.05)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_within_its_rounding_of_float64(dtype):
    exact = tiny_causal()
    tokens = random_tokens(exact.config, batch=4)
    model = copy.deepcopy(exact).to(dtype)
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        difference = (model(labels=tokens).logits.double() - exact(labels=tokens).logits).abs().max()
        assert difference < 10 * torch.finfo(dtype).eps


def test_loss_of_huge_logits_is_computed_in_float32():
    model = tiny_causal(torch.float16)
    with torch.no_grad():
        model.lm_head.weight.mul_(5000)
    tokens = random_tokens(model.config)
    outputs = model(labels=tokens)
    assert outputs.logits.isfinite().all()
    expected = torch.nn.functional.cross_entropy(outputs.logits.double().flatten(0, 1), tokens.flatten())
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_reorder_and_upcast_attn_computes_half_precision_attention_in_float32():
    exact = tiny_causal(reorder_and_upcast_attn=True)
    tokens = random_tokens(exact.config)
    plain = tiny_causal()
    torch.testing.assert_close(exact(labels=tokens).logits, plain(labels=tokens).logits)
    seen = []
    for backend in ("eager", "sdpa"):
        model = copy.deepcopy(exact).half()
        model.set_attn_implementation(backend)
        with QueryTypes(seen):
            logits = model(labels=tokens).logits
        assert logits.dtype == torch.float16
        torch.testing.assert_close(logits.double(), plain(labels=tokens).logits, atol=0.02, rtol=0)
    assert seen
    assert set(seen) == {torch.float32}


class QueryTypes(TorchDispatchMode):
    """Collects the types in which sdpa's kernel is called."""

    def __init__(self, seen: list[torch.dtype]):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(function):
            self.seen.append(args[0].dtype)
        return function(*args, **(kwargs or {}))


def test_autocast_equals_float32_within_bfloat16s_rounding_and_has_every_gradient():
    model = tiny_causal(torch.float32).train()
    tokens = random_tokens(model.config)
    exact = loss_and_gradients(model, labels=tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(labels=tokens).logits.dtype == torch.bfloat16
        mixed = loss_and_gradients(model, labels=tokens)
    assert mixed[0].dtype == torch.float32
    assert_same(mixed, exact, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [tiny_causal, tiny_masked])
def test_loss_is_finite_with_weights_a_hundred_times_the_initial_scale(make, dtype):
    """Norms, softmax and loss stay in float32, where these weights overflow half precision."""
    exact = make()
    with torch.no_grad():
        for weight in exact.parameters():
            if weight.dim() > 1:
                weight.mul_(100 * exact.config.initializer_range / weight.std())
    tokens = random_tokens(exact.config, batch=4)
    masked = {} if make is tiny_causal else {"bool_masked_pos": torch.rand(tokens.shape) < 0.5}
    expected = exact(input_ids=tokens, labels=tokens, **masked).loss if masked else exact(labels=tokens).loss
    assert expected > 10, "the weights are not large enough to tell"
    for backend in ("eager", "sdpa"):
        model = copy.deepcopy(exact).to(dtype)
        model.set_attn_implementation(backend)
        loss = model(input_ids=tokens, labels=tokens, **masked).loss if masked else model(labels=tokens).loss
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=0.2)
        assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)
