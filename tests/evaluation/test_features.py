import gc
import io
import pickle
import shutil
import weakref

import datasets
import numpy as np
import pytest
import torch
from accelerate import PartialState
from native_models import native_model
from reference_igpt import causal_hidden, masked_hidden
from tiny_models import random_tokens, randomize_, tiny_causal, tiny_config, tiny_masked, with_start
from two_processes import on_two_processes

from hf_igpt import ImageGPTForImageClassification
from hf_igpt.data.masking import Masking
from hf_igpt.evaluation import feature_store
from hf_igpt.evaluation.feature_store import FeatureSettings, export_features, prepare_features
from hf_igpt.evaluation.features import concatenated, extract_features, process_share
from hf_igpt.evaluation.layers import visit_layers
from hf_igpt.storage import staged_folder


COUNT = 7
# An array file whose header claims terabytes.
HUGE = (
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }".ljust(128) + b"\n"
)


@pytest.fixture(scope="module")
def model():
    return tiny_causal()


def images(model, count: int = COUNT) -> np.ndarray:
    return random_tokens(model.config, count).numpy()


def split_of(tokens: np.ndarray) -> datasets.Dataset:
    feature = datasets.Sequence(datasets.Value("uint8"), length=tokens.shape[1])
    return datasets.Dataset.from_dict(
        {"input_ids": tokens.tolist()}, features=datasets.Features({"input_ids": feature})
    )


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name.removeprefix("transformer."): weight for name, weight in model.state_dict().items()}


def test_every_layer_equals_the_reference(model):
    tokens = images(model)
    heads = model.config.num_attention_heads
    expected = [causal_hidden(torch.from_numpy(row), weights_of(model), heads)[1] for row in tokens]
    features = extract_features(model, tokens)
    assert len(features) == 3
    for layer, values in enumerate(features):
        assert values.dtype == np.float32
        assert values.shape == (COUNT, 24)
        assert np.ptp(values, axis=0).min() > 1e-3, "the test does not tell images apart"
        np.testing.assert_allclose(values, torch.stack([image[layer] for image in expected]), atol=1e-6)


def test_features_of_hidden_pixels_equal_the_reference():
    model = tiny_masked()
    tokens, masking = images(model), Masking(12, 0.4, seed=3)
    keep = ~masking(0, np.arange(COUNT), (2, 5))
    heads = model.config.num_attention_heads
    expected = [
        masked_hidden(torch.from_numpy(row), torch.from_numpy(kept).double(), weights_of(model), heads)[1]
        for row, kept in zip(tokens, keep, strict=True)
    ]
    features = extract_features(model, tokens, masking=masking, mask=(2, 5))
    for layer, values in enumerate(features):
        np.testing.assert_allclose(values, torch.stack([image[layer] for image in expected]), atol=1e-6)
    assert np.abs(features[2] - extract_features(model, tokens)[2]).max() > 1e-2
    hidden_changed = np.where(keep, tokens, (tokens + 1) % 10)
    changed = extract_features(model, hidden_changed, masking=masking, mask=(2, 5))
    for before, after in zip(features, changed, strict=True):
        np.testing.assert_array_equal(before, after)


def test_they_are_those_of_a_loop_over_hooks_and_of_the_pooled_layers(model):
    """The loop that a user of transformers would write: keep everything, then average."""
    tokens = torch.from_numpy(images(model))
    kept = {}

    def keep(layer):
        return lambda module, inputs, output: kept.update({layer: (inputs[0], output)})

    backbone = model.transformer
    norms = [*(block.ln_1 for block in backbone.h), backbone.ln_f]
    handles = [
        norm.register_forward_hook(
            lambda module, inputs, output, layer=layer: kept.update({layer: (inputs[0], output)})
        )
        for layer, norm in enumerate(norms)
    ]
    with torch.no_grad():
        backbone(input_ids=with_start(model.config, tokens))
    for handle in handles:
        handle.remove()
    features, raw = extract_features(model, tokens.numpy()), extract_features(model, tokens.numpy(), normed=False)
    for layer in range(3):
        np.testing.assert_allclose(raw[layer], kept[layer][0].mean(1), atol=1e-6)
        np.testing.assert_allclose(features[layer], kept[layer][1].mean(1), atol=1e-6)
        np.testing.assert_allclose(features[layer], model.pooled_features(tokens, layer).detach(), atol=1e-6)
    assert np.abs(raw[1] - features[1]).max() > 1e-2


def test_a_native_checkpoint_has_the_features_of_transformers(tmp_path):
    from hf_igpt import ImageGPTForCausalImageModeling

    native = native_model()
    native.save_pretrained(tmp_path)
    ours = ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    tokens = random_tokens(ours.config, 3)
    with torch.no_grad():
        states = native(input_ids=with_start(ours.config, tokens), output_hidden_states=True).hidden_states
        expected = [block.ln_1(state).mean(1) for block, state in zip(native.transformer.h, states[:-1], strict=True)]
        expected.append(states[-1].mean(1))
    for values, wanted in zip(extract_features(ours, tokens.numpy()), expected, strict=True):
        np.testing.assert_allclose(values, wanted, atol=1e-5)


def test_no_layer_is_kept_for_the_next(model):
    alive = []

    def visit(layer, states):
        gc.collect()
        assert not [layer for layer, reference in alive if reference() is not None]
        alive.append((layer, weakref.ref(states)))

    with torch.inference_mode():
        visit_layers(model, torch.from_numpy(images(model)), visit)
    assert [layer for layer, _ in alive] == [0, 1, 2]


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_batches_make_no_difference(model, batch_size):
    tokens, seen = images(model), []
    whole = extract_features(model, tokens)
    parts = extract_features(model, split_of(tokens), batch_size=batch_size, progress=seen.append)
    assert sum(seen) == COUNT
    for first, second in zip(whole, parts, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)


def test_dropout_stays_off_and_the_mode_as_it_was():
    model = tiny_causal(resid_pdrop=0.5).train()
    first, second = (extract_features(model, images(model)) for _ in range(2))
    assert model.training
    np.testing.assert_array_equal(first[2], second[2])


def test_what_is_refused(model):
    tokens = images(model)
    with pytest.raises(ValueError, match="at least one image"):
        extract_features(model, tokens[:0])
    with pytest.raises(ValueError, match="for masked models"):
        extract_features(model, tokens, masking=Masking(12))
    with pytest.raises(ValueError, match="another palette or VQ-VAE"):
        extract_features(model, tokens + 1)
    broken = tiny_causal()
    with torch.no_grad():
        broken.transformer.h[1].mlp.c_proj.weight[0] = torch.nan
    with pytest.raises(ValueError, match="image 0 in layer 2 are not finite"):
        extract_features(broken, tokens)


def test_neighbouring_layers_side_by_side():
    layers = [np.full((2, 3), layer) for layer in range(5)]
    assert concatenated(layers, 1, 3)[0].tolist() == [3] * 3
    assert concatenated(layers, 3, 2)[0].tolist() == [1] * 3 + [2] * 3 + [3] * 3
    assert concatenated(layers, 3, 0)[0].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert concatenated(layers, 3, 4)[0].tolist() == [2] * 3 + [3] * 3 + [4] * 3


@pytest.mark.parametrize(("images", "processes"), [(7, 2), (2, 3), (12, 4)])
def test_shares_cover_every_image_once(images, processes):
    shares = [range(*process_share(images, process, processes)) for process in range(processes)]
    assert [image for share in shares for image in share] == list(range(images))


# The cache


def store(folder, model, tokens, sha="abc", split="test", mask=(0, 1), **settings):
    settings = FeatureSettings(**({"token_hash": "p"} | settings))
    return prepare_features(folder, model, sha, tokens, split, settings, PartialState(), mask=mask)


def test_a_second_probe_reads_and_does_not_compute(model, tmp_path, monkeypatch):
    split = split_of(images(model))
    first = store(tmp_path, model, split)
    expected = extract_features(model, split)
    monkeypatch.setattr("hf_igpt.evaluation.features.extract_features", None)
    second = store(tmp_path, model, split)
    for wanted, before, after in zip(expected, first, second, strict=True):
        assert isinstance(after, np.memmap)
        np.testing.assert_array_equal(before, wanted)
        np.testing.assert_array_equal(after, wanted)


@pytest.mark.parametrize(
    "change",
    [
        {"sha": "other"},
        {"token_hash": "other"},
        {"normed": False},
        {"split": "train"},
    ],
)
def test_features_of_something_else_never_come_back(model, tmp_path, change):
    split = split_of(images(model))
    store(tmp_path, model, split)
    before = set(tmp_path.iterdir())
    store(tmp_path, model, split, **change)
    assert len(set(tmp_path.iterdir()) - before) == 1


def test_other_images_code_and_directions_have_features_of_their_own(model, tmp_path, monkeypatch):
    split = split_of(images(model))
    store(tmp_path, model, split)
    np.testing.assert_array_equal(
        store(tmp_path, model, split.select([3, 1]))[2], extract_features(model, images(model)[[3, 1]])[2]
    )
    monkeypatch.setattr(feature_store, "feature_code_version", lambda: "newer")
    store(tmp_path, model, split)
    assert len(list(tmp_path.iterdir())) == 3


def test_masks_have_features_of_their_own(tmp_path):
    model = tiny_masked()
    split = split_of(images(model))
    fixed = [store(tmp_path, model, split, mask=(n, m), masking=Masking(12, 0.4)) for n, m in ((0, 1), (1, 5), (0, 5))]
    assert np.abs(fixed[0][2] - fixed[1][2]).max() > 1e-2
    # The first mask at a fixed rate is the same however many follow.
    np.testing.assert_array_equal(fixed[0][2], fixed[2][2])
    assert len(list(tmp_path.iterdir())) == 2


def test_features_renamed_to_those_of_another_checkpoint_are_refused(model, tmp_path):
    split = split_of(images(model))
    store(tmp_path / "mine", model, split)
    store(tmp_path / "other", model, split, sha="other")
    (mine,), (other,) = (list((tmp_path / name).iterdir()) for name in ("mine", "other"))
    wrong = tmp_path / "mine" / other.name
    mine.rename(wrong)
    with pytest.raises(ValueError, match=r"made from something else: model was 'abc' and is now 'other'"):
        store(tmp_path / "mine", model, split, sha="other")


def test_a_damaged_file_is_found_and_made_again(model, tmp_path, caplog):
    split = split_of(images(model))
    before = np.array(store(tmp_path, model, split)[1])
    (folder,) = tmp_path.iterdir()
    path = folder / "layer-001.npy"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    np.testing.assert_array_equal(store(tmp_path, model, split)[1], before)
    assert "layer-001.npy" in caplog.text


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return type(self.marker).touch, (self.marker,)


def overwrite(folder, name: str, content) -> None:
    """Changes a file of a stage, and its manifest with it: damage is found by that, a forger writes both."""
    with staged_folder(folder, overwrite=True) as staged:
        shutil.copytree(folder, staged, dirs_exist_ok=True)
        (staged / "manifest.json").unlink()
        if isinstance(content, bytes):
            (staged / name).write_bytes(content)
        else:
            np.save(staged / name, content, allow_pickle=True)


@pytest.mark.parametrize("kind", ["pickle", "objects", "archive", "terabytes", "other rows", "other width", "float64"])
def test_stored_features_that_are_none_are_refused_by_name_and_not_unpickled(model, tmp_path, kind):
    split = split_of(images(model))
    good = np.array(store(tmp_path / "features", model, split)[1])
    (folder,) = (tmp_path / "features").iterdir()
    marker = tmp_path / "marker"
    objects = np.array([[Payload(marker)] * good.shape[1]] * len(good), dtype=object)
    np.savez(tmp_path / "archive.npz", good)
    contents = {
        "pickle": pickle.dumps(Payload(marker)),
        "objects": objects,
        "archive": (tmp_path / "archive.npz").read_bytes(),
        "terabytes": HUGE,
        "other rows": good[1:],
        "other width": good[:, 1:],
        "float64": good.astype(np.float64),
    }
    overwrite(folder, "layer-001.npy", contents[kind])
    with pytest.raises(ValueError, match=r"layer-001\.npy (is no array|must hold float32)"):
        store(tmp_path / "features", model, split)
    assert not marker.exists()
    np.load(io.BytesIO(_saved(objects)), allow_pickle=True)
    assert marker.exists(), "the payload works"


def _saved(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _shares(folder):
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    model = tiny_causal()
    store(folder, model, split_of(images(model)))


def test_two_processes_write_what_one_writes(model, tmp_path):
    on_two_processes(_shares, tmp_path)
    (folder,) = tmp_path.iterdir()
    for layer, wanted in enumerate(extract_features(model, images(model))):
        np.testing.assert_allclose(np.load(folder / f"layer-{layer:03d}.npy"), wanted, atol=1e-6)


def test_a_classifier_shows_its_backbone():
    classifier = randomize_(ImageGPTForImageClassification(tiny_config(num_labels=3)).eval())
    tokens = images(classifier)
    np.testing.assert_array_equal(
        extract_features(classifier, tokens)[1], extract_features(classifier.transformer, tokens)[1]
    )


def test_export_has_one_vector_for_each_image_and_layer(model, tmp_path):
    tokens = images(model)
    splits = {"train": extract_features(model, tokens), "test": extract_features(model, tokens[:2])}
    labels = {"train": np.arange(COUNT) % 2, "test": np.array([1, 0])}
    export_features(tmp_path / "features.parquet", splits, labels, ["cat", "dog"], rows_per_group=3)
    table = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "features.parquet"), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert table.column_names == ["split", "image", "label", "class", "layer_0", "layer_1", "layer_2"]
    assert table["split"][:] == ["train"] * COUNT + ["test"] * 2
    assert table["image"][:] == [*range(COUNT), 0, 1]
    assert table["class"][COUNT:] == ["dog", "cat"]
    np.testing.assert_array_equal(np.float32(table["layer_2"][:COUNT]), splits["train"][2])
    np.testing.assert_array_equal(np.float32(table["layer_0"][COUNT:]), splits["test"][0])
