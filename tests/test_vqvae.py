"""The VQ-VAE: its loss and gradients, its codebook, encoding and decoding, files, and what it refuses."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_remote_code import run_without_the_package
from tiny_models import randomize_
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModel
from two_processes import on_two_processes

from hf_igpt import ImageGPTVQVAEConfig, ImageGPTVQVAEModel, modeling_igpt_vqvae
from hf_igpt.configuration_igpt_vqvae import AUTO_MAP
from hf_igpt.modeling_igpt_vqvae import ImageGPTVQVAECodebook, nearest_codes
from hf_igpt.processes import process_state


SIZES = {"codebook_size": 12, "code_size": 5, "hidden_size": 16, "num_residual_blocks": 1, "residual_size": 6}


def tiny_vqvae(seed: int = 0, **fields) -> ImageGPTVQVAEModel:
    torch.manual_seed(seed)
    return ImageGPTVQVAEModel(ImageGPTVQVAEConfig(**(SIZES | fields))).eval()


def random_pixels(count: int = 3, height: int = 16, width: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def as_values(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


def brute_force(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """In float64, one code after the other, so that an equal one that comes later doesn't count."""
    best, codes = None, torch.zeros(len(vectors), dtype=torch.int64)
    for number, code in enumerate(codebook.double()):
        distances = (vectors.double() - code).square().sum(dim=1)
        closer = torch.ones_like(distances, dtype=torch.bool) if best is None else distances < best
        codes[closer] = number
        best = distances if best is None else distances.minimum(best)
    return codes


# The nearest code


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_nearest_codes_are_those_of_brute_force(scale, monkeypatch):
    monkeypatch.setattr(modeling_igpt_vqvae, "_BLOCK_DISTANCES", 1000)
    vectors, codebook = scale * torch.randn(500, 7), scale * torch.randn(90, 7)
    expected = brute_force(vectors, codebook)
    assert len(expected.unique()) > 40
    assert torch.equal(nearest_codes(vectors, codebook), expected)


def test_of_equal_and_of_nearly_equal_codes_the_right_one_is_taken():
    codebook = torch.randn(40, 6) + 100
    codebook[30], codebook[7] = codebook[3], codebook[3]
    # One step of float32 from another code: the products of a search in float32 can't tell them apart.
    codebook[21] = codebook[20]
    codebook[21, 0] = torch.nextafter(codebook[20, 0], torch.tensor(torch.inf))
    vectors = torch.cat([codebook, codebook + 1e-5 * torch.randn(40, 6), torch.randn(50, 6) + 100])
    codes = nearest_codes(vectors, codebook)
    assert codes[[3, 7, 30, 20, 21]].tolist() == [3, 3, 3, 20, 21]
    assert torch.equal(codes, brute_force(vectors, codebook))
    plain = (codebook.square().sum(1) / 2 - vectors @ codebook.T).argmin(dim=1)
    assert not torch.equal(plain, codes), "the example is too easy"


def test_products_of_lower_precision_change_nothing():
    """TF32 isn't on this machine, but its margin is: more codes are compared exactly."""
    vectors, codebook = torch.randn(300, 8), torch.randn(64, 8)
    expected = nearest_codes(vectors, codebook)
    try:
        torch.set_float32_matmul_precision("high")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(nearest_codes(vectors, codebook), expected)
    finally:
        torch.set_float32_matmul_precision("highest")


# Loss and gradients


def test_gradients_pass_the_quantization_straight_through():
    model = tiny_vqvae(commitment_weight=0.5)
    values = as_values(random_pixels())
    outputs = model(values)
    vectors = model.encoder(values)
    flat = vectors.permute(0, 2, 3, 1).flatten(0, 2)
    codes = brute_force(flat.detach(), model.quantizer.codebook)
    assert torch.equal(outputs.codes.flatten(), codes) and len(codes.unique()) > 3
    chosen = model.quantizer.codebook[codes]
    quantized = chosen.view(*vectors.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2).clone().requires_grad_()
    reconstruction_loss = (model.decoder(quantized) - values).square().mean()
    commitment_loss = (flat - chosen).square().mean()
    assert outputs.reconstruction_loss.item() == pytest.approx(reconstruction_loss.item(), rel=1e-6)
    assert outputs.commitment_loss.item() == pytest.approx(commitment_loss.item(), rel=1e-6)
    assert outputs.loss.item() == pytest.approx((reconstruction_loss + 0.5 * commitment_loss).item(), rel=1e-6)

    outputs.loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    (of_quantized,) = torch.autograd.grad(reconstruction_loss, quantized, retain_graph=True)
    of_vectors = of_quantized + torch.autograd.grad(0.5 * commitment_loss, vectors, retain_graph=True)[0]
    vectors.backward(of_vectors)
    reconstruction_loss.backward()
    for name, parameter in model.named_parameters():
        assert found[name].abs().max() > 1e-6, name
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-5, msg=name)
    assert not any(buffer.requires_grad for buffer in model.buffers())


# The codebook


def codebook_of(codes: list[list[float]], **fields) -> ImageGPTVQVAECodebook:
    """A codebook that has been updated before, each of its codes chosen once by itself."""
    fields = {"ema_decay": 0.75, "revival_threshold": 0.0} | fields
    config = ImageGPTVQVAEConfig(codebook_size=len(codes), code_size=len(codes[0]), **fields)
    quantizer = ImageGPTVQVAECodebook(config).train()
    quantizer.codebook.copy_(torch.tensor(codes))
    quantizer.ema_counts.fill_(1.0)
    quantizer.ema_sums.copy_(quantizer.codebook)
    quantizer.num_updates.fill_(1)
    return quantizer


def test_codes_are_running_means_of_the_vectors_that_chose_them():
    quantizer = codebook_of([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    first = torch.tensor([[1.0, 0.0], [3.0, 0.0], [9.0, 1.0]])
    second = torch.tensor([[2.0, 2.0]])
    for step in (first, second):
        codes, chosen = quantizer(step)
        assert torch.equal(chosen, quantizer.codebook[codes])
        quantizer.update()
    # counts: 0.75^2 * 1 + 0.75 * 0.25 * n1 + 0.25 * n2, and the same of sums
    counts = torch.tensor([0.5625 + 0.1875 * 2 + 0.25, 0.5625 + 0.1875, 0.5625])
    sums = torch.tensor([[0.1875 * 4 + 0.5, 0.5], [5.625 + 0.1875 * 9, 0.1875], [0.0, 5.625]])
    torch.testing.assert_close(quantizer.ema_counts, counts)
    torch.testing.assert_close(quantizer.ema_sums, sums)
    torch.testing.assert_close(quantizer.codebook, sums / counts[:, None])
    assert int(quantizer.num_updates) == 3


def test_unused_codes_take_the_place_of_vectors_of_the_step():
    quantizer = codebook_of([[0.0], [100.0], [200.0], [300.0]], revival_threshold=0.5)
    vectors = torch.tensor([[0.0], [1.0], [2.0], [99.0], [101.0], [100.0]])
    updates = 0
    while quantizer.codebook[2:].min() > 150 and updates < 20:
        quantizer(vectors)
        quantizer.update()
        updates += 1
    # Both have counts 0.75^n against a mean near 6 / 4.
    assert 1 < updates < 5
    assert all(float(code) in vectors.flatten().tolist() for code in quantizer.codebook[2:, 0])
    assert quantizer.codebook[2] != quantizer.codebook[3], "each gets another vector"
    torch.testing.assert_close(quantizer.ema_counts[2:], torch.full((2,), 6 / 4))
    torch.testing.assert_close(quantizer.ema_sums[2:], quantizer.codebook[2:] * 1.5)
    assert quantizer.codebook[0] < 3 and abs(quantizer.codebook[1] - 100) < 3, "used ones stay"

    never = codebook_of([[0.0], [100.0], [200.0], [300.0]], revival_threshold=0.0)
    for _ in range(10):
        never(vectors)
        never.update()
    assert never.codebook[2:].flatten().tolist() == [200, 300]


@pytest.mark.parametrize("threshold", [0.0, 0.03])
def test_the_first_codes_are_vectors_of_the_first_step(threshold):
    values = as_values(random_pixels())
    vectors = tiny_vqvae().encoder(values).permute(0, 2, 3, 1).flatten(0, 2).detach().double()
    codebooks = []
    for seed in (0, 0, 1):
        model = tiny_vqvae(revival_seed=seed, revival_threshold=threshold).train()
        model(values)
        model.update_codebook()
        distances = torch.cdist(
            model.quantizer.codebook.double(), vectors, compute_mode="donot_use_mm_for_euclid_dist"
        )
        assert distances.min(dim=1).values.max() < 1e-5
        assert len(distances.argmin(dim=1).unique()) == 12
        codebooks.append(model.quantizer.codebook)
    assert torch.equal(codebooks[0], codebooks[1]) and not torch.equal(codebooks[0], codebooks[2])


def test_with_fewer_vectors_than_codes_all_vectors_become_codes():
    model = tiny_vqvae(codebook_size=50).train()
    drawn = model.quantizer.codebook.clone()
    values = as_values(random_pixels(1, 8, 16))
    vectors = model.encoder(values).permute(0, 2, 3, 1).flatten(0, 2).detach()
    model(values)
    model.update_codebook()
    for vector in vectors:
        assert (model.quantizer.codebook - vector).abs().amax(dim=1).min() < 1e-5
    assert 8 <= (model.quantizer.codebook != drawn).any(dim=1).sum() <= 16
    assert model.quantizer.codebook.isfinite().all()


def steps_of(model: ImageGPTVQVAEModel, values: torch.Tensor, splits: list[list[slice]], wrapped=None) -> None:
    """A step of the optimizer for each list of slices, which are its batches."""
    wrapped = wrapped or model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in splits:
        for part in step:
            (wrapped(values[part]).loss / len(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_codebook()


def assert_same_state(first: dict, second: dict, exactly: bool = False) -> None:
    for name, tensor in first.items():
        tolerance = {"atol": 0, "rtol": 0} if exactly else {"atol": 2e-6, "rtol": 1e-5}
        torch.testing.assert_close(second[name], tensor, msg=name, **tolerance)


@pytest.fixture(scope="module")
def whole_steps() -> tuple[torch.Tensor, dict]:
    """Images, and what three steps of eight images at once make of a model."""
    values = as_values(random_pixels(24, 8, 8))
    model = tiny_vqvae(revival_threshold=0.5, ema_decay=0.6).train()
    before = copy.deepcopy(model.state_dict())
    steps_of(model, values, [[slice(first, first + 8)] for first in (0, 8, 16)])
    state = model.state_dict()
    assert not torch.allclose(before["quantizer.codebook"], state["quantizer.codebook"])
    return values, state


def test_a_step_in_several_batches_is_the_same_step(whole_steps):
    values, expected = whole_steps
    model = tiny_vqvae(revival_threshold=0.5, ema_decay=0.6).train()
    parts = [[slice(at, at + 2) for at in range(first, first + 8, 2)] for first in (0, 8, 16)]
    steps_of(model, values, parts)
    assert_same_state(expected, model.state_dict())


def train_on_two_processes(folder: str) -> None:
    rank = process_state().process_index
    values = as_values(random_pixels(24, 8, 8))
    model = tiny_vqvae(revival_threshold=0.5, ema_decay=0.6).train()
    # Batches of two images are dealt to the processes in turns.
    firsts = [[first + 2 * rank, first + 4 + 2 * rank] for first in (0, 8, 16)]
    steps_of(model, values, [[slice(at, at + 2) for at in step] for step in firsts], DistributedDataParallel(model))
    torch.save(model.state_dict(), Path(folder) / f"{rank}.pt")


def test_two_processes_train_the_codes_that_one_does(whole_steps, tmp_path):
    on_two_processes(train_on_two_processes, str(tmp_path))
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_same_state(states[0], states[1], exactly=True)
    assert_same_state(whole_steps[1], states[0])


def test_a_forgotten_update_is_said_and_one_without_vectors_refused(monkeypatch):
    model = tiny_vqvae().train()
    with pytest.raises(ValueError, match="nothing to update the codebook with"):
        model.update_codebook()
    monkeypatch.setattr(modeling_igpt_vqvae, "_FORGOTTEN_PASSES", 3)
    warned = []
    monkeypatch.setattr(modeling_igpt_vqvae.logger, "warning", lambda text, *values: warned.append(text % values))
    for _ in range(4):
        model(as_values(random_pixels(1)))
    assert len(warned) == 1 and "Call it after each step of the optimizer" in warned[0]
    model.eval()(as_values(random_pixels(1)))
    assert len(model.quantizer._collected) == 4, "evaluation collects nothing"


# Encoding and decoding


@pytest.mark.parametrize("downsampling", [2, 4, 8])
def test_codes_of_images_and_images_of_codes(downsampling):
    model = tiny_vqvae(downsampling=downsampling)
    pixels = random_pixels()
    codes = model.encode(pixels)
    assert (codes.dtype, codes.shape) == (torch.int64, (3, 16 // downsampling, 24 // downsampling))
    outputs = model(as_values(pixels))
    assert torch.equal(outputs.codes, codes) and not torch.equal(codes[0], codes[1])
    images = model.decode(codes)
    assert (images.dtype, images.shape) == (torch.uint8, (3, 16, 24, 3))
    expected = ((outputs.reconstruction + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1)
    assert (images.float() - expected).abs().max() <= 1 and images.float().std() > 5
    assert torch.equal(model.encode(torch.from_numpy(pixels)), codes)
    assert torch.equal(model.decode(codes.numpy().astype(np.uint16)), images)
    assert model.encode(pixels[:0]).shape == (0, *codes.shape[1:]) and model.decode(codes[:0]).shape == (0, 16, 24, 3)
    # Not of inference mode: codes are labels in training.
    assert not codes.is_inference() and not images.is_inference()


def test_blocks_and_modes_change_no_code(monkeypatch):
    model = tiny_vqvae()
    pixels = random_pixels(7)
    codes, seen = model.encode(pixels), []
    monkeypatch.setattr(modeling_igpt_vqvae, "_BLOCK_PIXELS", 2 * 16 * 24)
    encode_block = model._encode_block
    monkeypatch.setattr(model, "_encode_block", lambda block: seen.append(len(block)) or encode_block(block))
    assert torch.equal(model.encode(pixels), codes) and seen == [2, 2, 2, 1]
    images = model.decode(codes)
    assert torch.equal(images[3:4], model.decode(codes[3:4]))
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(model.train().encode(pixels), codes) and not model.quantizer._collected
    assert_same_state(before, model.state_dict(), exactly=True)


@pytest.mark.parametrize(("downsampling", "blocks"), [(2, 0), (2, 2), (4, 1), (8, 1)])
def test_a_code_depends_on_its_receptive_field_and_on_nothing_else(downsampling, blocks):
    """Pixels are changed one by one: the vectors that move are those whose field they lie in."""
    model = tiny_vqvae(downsampling=downsampling, num_residual_blocks=blocks)
    # In float64 and without dead rectifiers, so that every pixel of the field moves the vector.
    model = randomize_(model, 1).double()
    field = model.receptive_field
    cells = -(-field // downsampling) + 2
    side = cells * downsampling
    values = as_values(random_pixels(1, side, side)).double()
    middle = cells // 2
    with torch.no_grad():
        vector = model.encoder(values)[0, :, middle, middle]
        changed = values.expand(side, -1, -1, -1).clone()
        changed[range(side), :, middle * downsampling, range(side)] += 1.0
        moved = (model.encoder(changed)[:, :, middle, middle] - vector).abs().amax(dim=1) > 0
    columns = moved.nonzero()[:, 0]
    assert columns.max() - columns.min() + 1 == field
    assert int(moved.sum()) >= 0.8 * field, "a few may be missed by rectifiers"
    assert field == model.config.receptive_field


# Files


def test_a_saved_model_is_the_same_model(tmp_path):
    model = tiny_vqvae().train()
    model(as_values(random_pixels()))
    model.update_codebook()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is ImageGPTVQVAEConfig
    loaded, info = ImageGPTVQVAEModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same_state(model.state_dict(), loaded.state_dict(), exactly=True)
    assert type(AutoModel.from_pretrained(tmp_path)) is ImageGPTVQVAEModel
    assert loaded.codes_hash == model.codes_hash and int(loaded.quantizer.num_updates) == 1
    assert torch.equal(loaded.encode(random_pixels()), model.encode(random_pixels()))
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    # Over an older one, as any model of the package.
    tiny_vqvae(1).save_pretrained(tmp_path)
    assert ImageGPTVQVAEModel.from_pretrained(tmp_path).codes_hash == tiny_vqvae(1).codes_hash


def test_the_hash_changes_with_all_that_tokens_mean_and_with_nothing_else():
    model = tiny_vqvae()
    own = model.codes_hash
    assert len(own) == 16 and int(own, 16) >= 0 and tiny_vqvae().codes_hash == own
    assert tiny_vqvae(commitment_weight=1, revival_threshold=0, ema_decay=0.5, revival_seed=3).codes_hash == own
    model.quantizer.ema_counts += 1
    assert model.codes_hash == own
    for name, tensor in model.state_dict().items():
        if not name.endswith(("ema_counts", "ema_sums", "num_updates")):
            first, kept = tensor.view(-1)[0], tensor.view(-1)[0].clone()
            first += 1
            assert model.codes_hash != own, name
            first.copy_(kept)
    assert model.codes_hash == own


WITHOUT = """
import importlib.abc, json, sys

class WithoutPackage(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_igpt":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, WithoutPackage())
import numpy as np
from transformers import AutoConfig, AutoModel

folder = sys.argv[1]
config = AutoConfig.from_pretrained(f"{folder}/vqvae", trust_remote_code=True)
model = AutoModel.from_pretrained(f"{folder}/vqvae", trust_remote_code=True)
codes = model.encode(np.load(f"{folder}/pixels.npy"))
modules = [type(part).__module__ for part in (config, model)]
assert "hf_igpt" not in sys.modules
found = {"codes": codes.tolist(), "images": model.decode(codes).tolist(), "hash": model.codes_hash}
print(json.dumps(found | {"modules": modules, "field": model.receptive_field}))
"""


def test_it_loads_without_the_package(tmp_path):
    model, pixels = tiny_vqvae(), random_pixels()
    model.save_pretrained(tmp_path / "vqvae")
    np.save(tmp_path / "pixels.npy", pixels)
    done = run_without_the_package(tmp_path, WITHOUT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(module.startswith("transformers_modules.") for module in found["modules"])
    codes = model.encode(pixels)
    assert (found["codes"], found["images"]) == (codes.tolist(), model.decode(codes).tolist())
    assert (found["hash"], found["field"]) == (model.codes_hash, model.receptive_field)
    source = Path(modeling_igpt_vqvae.__file__).parent
    carried = list((tmp_path / "vqvae").glob("*.py"))
    assert {"configuration_igpt_vqvae.py", "modeling_igpt_vqvae.py"} <= {path.name for path in carried}
    assert all(path.read_bytes() == (source / path.name).read_bytes() for path in carried)


# Refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"downsampling": 3}, "`downsampling` must be 2, 4 or 8, got 3"),
        ({"downsampling": True}, "`downsampling` must be 2, 4 or 8"),
        ({"codebook_size": 8193}, "`codebook_size` must be an integer from 2 to 8192, got 8193"),
        ({"codebook_size": 1}, "`codebook_size` must be"),
        ({"code_size": 0}, "`code_size` must be"),
        ({"hidden_size": 3, "downsampling": 4}, "`hidden_size` must be an integer from 4"),
        ({"num_residual_blocks": -1}, "`num_residual_blocks` must be"),
        ({"residual_size": 2.5}, "`residual_size` must be an integer"),
        ({"commitment_weight": -0.1}, "`commitment_weight` must be a number from 0.0"),
        ({"commitment_weight": float("nan")}, "`commitment_weight` must be"),
        ({"ema_decay": 1.0}, "`ema_decay` must be"),
        ({"revival_threshold": "some"}, "`revival_threshold` must be"),
        ({"code_book_size": 9}, "Unknown config field 'code_book_size'. Did you mean 'codebook_size'"),
        ({"receptive_field": 9}, "`receptive_field` is no config field"),
    ],
)
def test_a_wrong_config_is_refused(fields, message):
    with pytest.raises(ValueError) as raised:
        ImageGPTVQVAEConfig(**fields)
    assert message in str(raised.value)


def test_wrong_images_and_codes_are_refused():
    model = tiny_vqvae()
    for pixels, message in [
        (random_pixels(1, 18, 16), "height must be a multiple of `downsampling`, 4 pixels, got 18"),
        (random_pixels(1, 16, 3), "width must be a multiple of `downsampling`, 4 pixels, got 3"),
        (random_pixels(1)[..., :1], "`pixels` must be uint8 of shape (images, height, width, 3), got uint8 of shape"),
        (random_pixels(1).astype(np.float32), "got float32 of shape [1, 16, 24, 3]"),
        (random_pixels(1)[0], "got uint8 of shape [16, 24, 3]"),
        ([1, 2], "got list"),
    ]:
        with pytest.raises(ValueError) as raised:
            model.encode(pixels)
        assert message in str(raised.value).replace("torch.", "")
    for codes, message in [
        (torch.full((1, 2, 2), 12), "`codes` must be from 0 to 11, got 12 at row 0, column 0 of image 0"),
        (torch.tensor([[[0, 1], [-1, 2]]]), "got -1 at row 1, column 0 of image 0"),
        (torch.zeros(1, 2, 2), "`codes` must be integers of shape (images, rows, columns)"),
        (torch.zeros(2, 2, dtype=torch.int64), "got torch.int64 of shape [2, 2]"),
        (np.zeros((1, 2, 2)), "got float64 of shape [1, 2, 2]"),
    ]:
        with pytest.raises(ValueError) as raised:
            model.decode(codes)
        assert message in str(raised.value)
    for values, message in [
        (torch.zeros(1, 1, 8, 8), "`pixel_values` must be floats in [-1, 1] of shape (images, 3, height, width)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "got torch.uint8"),
        (torch.zeros(1, 3, 8, 9), "width must be a multiple"),
    ]:
        with pytest.raises(ValueError) as raised:
            model(values)
        assert message in str(raised.value)


def test_wrong_files_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model = tiny_vqvae()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    file, load = tmp_path / "model.safetensors", ImageGPTVQVAEModel.from_pretrained
    without = {name: tensor for name, tensor in weights.items() if name != "quantizer.codebook"}
    for tensors, message in [
        (without, "missing keys: quantizer.codebook"),
        (weights | {"extra": torch.zeros(1)}, "unexpected keys: extra"),
        (weights | {"quantizer.codebook": torch.zeros(13, 5)}, "mismatched keys"),
    ]:
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(ValueError) as raised:
            load(tmp_path)
        assert message in str(raised.value) and str(tmp_path) in str(raised.value)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError):
        load(tmp_path)
    file.unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError):
        load(tmp_path)
    with pytest.raises(ValueError, match="safetensors only"):
        load(tmp_path, use_safetensors=False)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "igpt"}))
    with pytest.raises(ValueError, match="`model_type` must be 'igpt_vqvae', got 'igpt'"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"downsampling": 5}))
    with pytest.raises(ValueError, match="`downsampling` must be"):
        load(tmp_path)
