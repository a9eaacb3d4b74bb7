import json
import os

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.state import PartialState
from hypothesis import given, settings
from hypothesis import strategies as st
from image_samples import HEIGHT, WIDTH, dataset_of, make_pixels, make_processor
from torch.utils.data import DataLoader
from two_processes import on_two_processes

from hf_igpt.data.augmentation import augmented_positions, random_resized_crop
from hf_igpt.data.loading import EpochSampler, ImageTokenDataset, MaskedTokenCollator, TokenCollator, TokenDataset
from hf_igpt.data.masking import Masking


GRID, NUM_VALUES = (6, 5), 300
TOKENS = GRID[0] * GRID[1]


def stored_tokens(count=11, num_values=NUM_VALUES, dtype="uint16", length=TOKENS, label=True):
    values = np.random.default_rng(4).integers(0, num_values, (count, length)).astype(dtype)
    features = {"input_ids": datasets.Sequence(datasets.Value(dtype), length=length)}
    columns = {"input_ids": values}
    if label:
        features["label"], columns["label"] = datasets.Value("int64"), list(range(count))
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features)), values


def token_dataset(**settings):
    return TokenDataset(stored_tokens()[0], num_values=NUM_VALUES, grid=GRID, **{"augment": "crop_flip", **settings})


def test_an_example_is_its_image_augmented_by_seed_epoch_and_index():
    tokens, values = stored_tokens()
    dataset = TokenDataset(tokens, num_values=NUM_VALUES, grid=GRID, augment="crop_flip", seed=9)
    keys = [2 * 11 + 3, 3, 10, 5 * 11]
    examples = dataset.__getitems__(keys)
    positions = augmented_positions("crop_flip", GRID, seed=9, epochs=np.array([2, 0, 0, 5]), indices=[3, 3, 10, 0])
    np.testing.assert_array_equal(
        [example["input_ids"] for example in examples], np.take_along_axis(values[[3, 3, 10, 0]], positions, axis=1)
    )
    assert [example["label"] for example in examples] == [3, 3, 10, 0]
    np.testing.assert_array_equal(dataset[keys[0]]["input_ids"], examples[0]["input_ids"])
    assert (examples[0]["input_ids"] != examples[1]["input_ids"]).any()


def test_rgb_cells_stay_together():
    tokens, values = stored_tokens(num_values=256, dtype="uint8", length=3 * TOKENS)
    dataset = TokenDataset(tokens, num_values=256, grid=GRID, num_channels=3, augment="flip", seed=1)
    for key in range(11):
        image = values[key].reshape(*GRID, 3)
        shown = dataset[key]["input_ids"].reshape(*GRID, 3)
        assert (shown == image).all() or (shown == image[:, ::-1]).all()


def test_stored_rows_are_read_through_select_and_shuffle():
    tokens, values = stored_tokens(label=False)
    dataset = TokenDataset(tokens.select([7, 2, 9]), num_values=NUM_VALUES, grid=GRID)
    assert len(dataset) == 3
    np.testing.assert_array_equal([example["input_ids"] for example in dataset], values[[7, 2, 9]])
    assert set(dataset[0]) == {"input_ids", "epoch", "image"}
    joined = datasets.concatenate_datasets([tokens, tokens.select([1])])
    dataset = TokenDataset(joined, num_values=NUM_VALUES, grid=GRID)
    np.testing.assert_array_equal(dataset.__getitems__([11, 10])[0]["input_ids"], values[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tokens: tokens.select([]), "`tokens` must hold at least one image, got none"),
        (lambda tokens: tokens.remove_columns("input_ids"), "no column 'input_ids', only label"),
        (lambda tokens: stored_tokens(length=29)[0], "must hold 30 tokens a row .* fixed length of 29"),
    ],
)
def test_unsuitable_tokens_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TokenDataset(change(stored_tokens()[0]), num_values=NUM_VALUES, grid=GRID)


def test_unknown_augmentation_and_keys_are_refused():
    with pytest.raises(ValueError, match="`augment` must be one of"):
        token_dataset(augment="cutout")
    with pytest.raises(IndexError, match="got -1"):
        token_dataset()[-1]


@settings(max_examples=100, deadline=None)
@given(num_images=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 2**63), shuffle=st.booleans())
def test_epochs_are_consecutive_pieces_of_a_stream_of_permutations(num_images, batch, seed, shuffle):
    sampler = EpochSampler(num_images, batch, seed, shuffle)
    assert len(sampler) % batch == 0 and 0 <= len(sampler) - num_images < batch
    assert sampler.steps_per_epoch == len(sampler) // batch
    stream = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert keys == list(sampler), "the same epoch twice"
        assert len(keys) == len(sampler)
        stream += keys
    for data_epoch in range(len(stream) // num_images):
        piece = stream[data_epoch * num_images : (data_epoch + 1) * num_images]
        assert sorted(piece) == list(range(data_epoch * num_images, (data_epoch + 1) * num_images))
        assert shuffle or piece == sorted(piece)


def test_permutations_depend_on_seed_and_epoch():
    orders = {tuple(key % 20 for key in EpochSampler(20, 20, seed)) for seed in range(5)}
    sampler = EpochSampler(20, 20, seed=0)
    for epoch in range(5):
        sampler.set_epoch(epoch)
        orders.add(tuple(key % 20 for key in sampler))
    assert len(orders) == 9


@pytest.mark.parametrize(("num_images", "batch", "name"), [(0, 4, "num_images"), (4, 0, "total_batch_size")])
def test_an_epoch_of_nothing_is_refused(num_images, batch, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        EpochSampler(num_images, batch)


def test_fewer_images_than_a_batch_make_full_batches():
    sampler = EpochSampler(3, 8)
    assert len(list(sampler)) == 8
    assert sorted(key % 3 for key in list(sampler)[:6]) == [0, 0, 1, 1, 2, 2]


def batches(epochs=(0, 1, 2), per_device=4, workers=0, skip=0, persistent=False):
    """Batches of each epoch on this process, as Trainer makes them: labels and masks as nested lists."""
    accelerator = Accelerator(cpu=True)
    dataset = token_dataset()
    sampler = EpochSampler(len(dataset), 8, seed=2)
    loader = DataLoader(
        dataset,
        batch_size=per_device,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=persistent,
        collate_fn=masked_collator(),
    )
    loader = accelerator.prepare(loader)
    result = []
    for epoch in epochs:
        resumed = skip_first_batches(loader, skip) if skip and epoch == epochs[0] else loader
        sampler.set_epoch(epoch)
        resumed.set_epoch(epoch)
        result.append([torch.stack([batch["labels"], batch["bool_masked_pos"]], 1).tolist() for batch in resumed])
    return result


def rows(epoch):
    return [row for batch in epoch for row in batch]


def test_batches_are_the_same_for_any_workers_and_split():
    alone = batches()
    assert [len(rows(epoch)) for epoch in alone] == [16, 16, 16]
    assert len({json.dumps(epoch) for epoch in alone}) == 3
    assert batches(workers=2) == alone
    assert batches(workers=2, persistent=True) == alone
    for per_device in (1, 2, 8):  # 8 per step as 8, 4 or 1 accumulation steps
        assert [rows(epoch) for epoch in batches(per_device=per_device)] == [rows(epoch) for epoch in alone]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_resumed_epoch_goes_on_where_it_was(workers, epoch):
    whole = batches(epochs=(epoch, epoch + 1))
    resumed = batches(epochs=(epoch, epoch + 1), workers=workers, skip=2)
    assert resumed == [whole[0][2:], whole[1]]


def run_as_one_of_two(folder):
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    result = {
        "whole": batches(per_device=2),
        "resumed": batches(epochs=(1, 2), per_device=2, skip=1, workers=2),
    }
    with open(os.path.join(folder, f"{state.process_index}.json"), "w") as file:
        json.dump(result, file)


def test_two_processes_share_the_batches_of_one(tmp_path):
    on_two_processes(run_as_one_of_two, str(tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    alone = batches(per_device=2)

    def dealt(name):
        pairs = zip(first[name], second[name], strict=True)
        return [[batch for pair in zip(*epochs, strict=True) for batch in pair] for epochs in pairs]

    assert dealt("whole") == alone
    assert dealt("resumed") == [alone[1][2:], alone[2]]


def test_an_example_carries_its_key():
    for key in (3, 2 * 11 + 3):
        example = token_dataset()[key]
        assert (example["epoch"], example["image"]) == divmod(key, 11)
    example = image_token_dataset()[5]
    assert (example["epoch"], example["image"]) == divmod(5, len(image_token_dataset()))


def masked_collator(rate=0.3):
    return MaskedTokenCollator(NUM_VALUES, TOKENS, masking=Masking(TOKENS, rate, seed=4))


@pytest.mark.parametrize("rate", [0.3, "uniform"])
def test_masked_collator_draws_masks_by_epoch_and_image(rate):
    keys = [2 * 11 + 3, 3, 10]
    dataset = token_dataset(augment="none")
    batch = masked_collator(rate)(dataset.__getitems__(keys))
    assert set(batch) == {"input_ids", "labels", "bool_masked_pos"}
    np.testing.assert_array_equal(batch["input_ids"], stored_tokens()[1][[3, 3, 10]])
    assert torch.equal(batch["labels"], batch["input_ids"]) and batch["labels"].dtype == torch.int64
    expected = Masking(TOKENS, rate, 4)(np.array([2, 0, 0]), np.array([3, 3, 10]))
    np.testing.assert_array_equal(batch["bool_masked_pos"], expected)
    assert (expected[0] != expected[1]).any()
    single = masked_collator(rate)([dataset[keys[1]]])
    assert torch.equal(single["bool_masked_pos"][0], batch["bool_masked_pos"][1])


def test_masks_need_the_key():
    with pytest.raises(ValueError, match="must have 'epoch'.*got input_ids"):
        masked_collator()([{"input_ids": np.zeros(TOKENS, dtype=np.int64)}])


def test_collator_gives_the_causal_heads_labels():
    dataset = token_dataset(augment="none")
    batch = TokenCollator(NUM_VALUES, TOKENS)(dataset.__getitems__([0, 4]))
    assert set(batch) == {"labels"} and batch["labels"].dtype == torch.int64
    np.testing.assert_array_equal(batch["labels"], stored_tokens()[1][[0, 4]])
    assert TokenCollator(NUM_VALUES)([{"input_ids": [1, 2]}])["labels"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, r"must lie in 0 to 6, got 7 \(the start token, which is never a label\) at position 3 of example 1"),
        (8, "must lie in 0 to 6, got 8 at position 3 of example 1"),
        (-1, "must lie in 0 to 6, got -1 at position 3 of example 1"),
        (2**40, f"got {2**40} at position 3"),
    ],
)
def test_a_label_outside_the_vocabulary_is_refused(value, message):
    examples = [{"input_ids": np.zeros(5, dtype=np.int64)} for _ in range(3)]
    TokenCollator(7, 5)(examples)
    examples[1]["input_ids"][3] = value
    with pytest.raises(ValueError, match=message):
        TokenCollator(7, 5)(examples)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "at least one example"),
        ([[1, 2], [1, 2, 3]], r"example 0 must be 3 integers, got int64 of shape \(2,\)"),
        ([[1, 2, 3], [[1, 2, 3]]], r"example 1 must be 3 integers, got int64 of shape \(1, 3\)"),
        ([[1.0, 2.0, 3.0]], "example 0 must be 3 integers, got float64"),
    ],
)
def test_examples_of_another_shape_are_refused(examples, message):
    with pytest.raises(ValueError, match=message):
        TokenCollator(7, 3)([{"input_ids": example} for example in examples])


def image_token_dataset(images=None, **settings):
    settings = {"shorter_side": (8, 12), "crop_size": 7, "seed": 3, **settings}
    images = dataset_of(make_pixels(5)) if images is None else images
    return ImageTokenDataset(images, make_processor(), **settings)


def test_images_are_cropped_and_quantized_by_seed_epoch_and_index():
    images, processor, dataset = dataset_of(make_pixels(5)), make_processor(), image_token_dataset()
    examples = dataset.__getitems__([2, 5 + 2, 4])
    for (epoch, index), example in zip([(0, 2), (1, 2), (0, 4)], examples, strict=True):
        crop = random_resized_crop(
            images[index]["image"], seed=3, epoch=epoch, index=index, shorter_side=(8, 12), crop_size=7
        )
        np.testing.assert_array_equal(example["input_ids"], processor.quantize(processor.pixels([crop]))[0])
        assert example["label"] == index % 3
    assert (examples[0]["input_ids"] != examples[1]["input_ids"]).any()
    assert len(examples[0]["input_ids"]) == HEIGHT * WIDTH


def test_image_batches_are_the_same_for_any_workers():
    def labels(workers):
        loader = DataLoader(
            image_token_dataset(), 4, sampler=EpochSampler(5, 4), num_workers=workers, collate_fn=TokenCollator(7, 30)
        )
        return [batch["labels"].tolist() for batch in loader]

    assert labels(0) == labels(2)


def test_a_damaged_image_is_named_while_training():
    dataset = image_token_dataset(dataset_of(make_pixels(5), damaged=[3]))
    dataset.__getitems__([0, 1, 2, 4])
    with pytest.raises(ValueError, match="The image in row 3, file image-3.png can't be used"):
        dataset[5 + 3]


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="`images` must hold at least one image, got none"):
        image_token_dataset(dataset_of(make_pixels(5)).select([]))
