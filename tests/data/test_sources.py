import datasets
import numpy as np
import pytest
from image_samples import dataset_of, make_pixels, png

from hf_igpt.data.sources import load_images


def write_parquet(folder, **splits):
    for name, (count, seed) in splits.items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        split = dataset_of(make_pixels(count, seed)).rename_column("image", "img")
        split.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    return str(folder)


def contents(split, column="img"):
    raw = split.cast_column(column, datasets.Image(decode=False))
    return [row[column]["bytes"] for row in raw]


def test_digits_are_scikit_learns_images():
    from sklearn.datasets import load_digits

    source = load_images("digits")
    sizes = {name: len(split) for name, split in source.splits.items()}
    assert (source.image_column, source.label_column) == ("image", "label")
    assert source.label_names == list("0123456789")
    assert sizes == {"train": 1294, "validation": 144, "test": 359}
    seen = {}
    for split in source.splits.values():
        for row in split:
            assert row["image"].size == (8, 8) and row["image"].mode == "L"
            seen.setdefault(np.asarray(row["image"]).tobytes(), set()).add(row["label"])
    images, targets = load_digits(return_X_y=True)
    expected = np.rint(images * 255 / 16).astype(np.uint8)
    assert expected.max() == 255
    assert {image.tobytes(): {target} for image, target in zip(expected, targets, strict=True)} == seen


def test_digits_test_split_is_the_same_for_every_seed():
    first, second = load_images("digits", seed=0), load_images("digits", seed=1)
    assert contents(first.splits["test"], "image") == contents(second.splits["test"], "image")
    assert contents(first.splits["validation"], "image") != contents(second.splits["validation"], "image")


def test_a_seeded_part_of_train_becomes_validation(tmp_path):
    folder = write_parquet(tmp_path, train=(50, 0), test=(8, 1))
    source = load_images(folder, validation_fraction=0.1, seed=3)
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 45, "validation": 5, "test": 8}
    whole = {png(image) for image in make_pixels(50, 0)}
    train, validation = set(contents(source.splits["train"])), set(contents(source.splits["validation"]))
    assert train | validation == whole and not train & validation
    assert contents(source.splits["test"]) == [png(image) for image in make_pixels(8, 1)]
    assert (source.image_column, source.label_column, source.label_names) == ("img", "label", ["a", "b", "c"])
    again = load_images(folder, validation_fraction=0.1, seed=3)
    assert contents(again.splits["validation"]) == contents(source.splits["validation"])
    assert again.fingerprints == source.fingerprints
    other = load_images(folder, validation_fraction=0.1, seed=4)
    assert set(contents(other.splits["validation"])) != validation
    assert other.fingerprints["train"] != source.fingerprints["train"]


def test_validation_folds_back_into_train(tmp_path):
    folder = write_parquet(tmp_path / "two", train=(50, 0), test=(8, 1))
    source = load_images(folder, fold_validation=True)
    assert contents(source.splits["train"]) == [png(image) for image in make_pixels(50, 0)]
    assert set(source.splits) == {"train", "test"}
    folder = write_parquet(tmp_path / "three", train=(5, 0), validation=(3, 2), test=(8, 1))
    source = load_images(folder, fold_validation=True)
    assert len(source.splits["train"]) == 8
    assert load_images(folder).splits["validation"].num_rows == 3


def test_no_test_split_is_said_and_can_be_cut(tmp_path):
    folder = write_parquet(tmp_path, train=(50, 0))
    source = load_images(folder)
    assert set(source.splits) == {"train", "validation"}
    with pytest.raises(ValueError, match="no split 'test', only train, validation.*no test split, so validation"):
        source.split("test")
    source = load_images(folder, test_fraction=0.2)
    parts = [set(contents(split)) for split in source.splits.values()]
    assert sorted(map(len, parts)) == [4, 10, 36]
    assert len(set.union(*parts)) == 50


def test_roles_of_named_splits(tmp_path):
    """ImageNet: the test images' labels are secret, so the validation split is the test split."""
    folder = write_parquet(tmp_path, train=(50, 0), validation=(6, 1), test=(8, 2))
    source = load_images(folder, test_split="validation", validation_fraction=0.04)
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 48, "validation": 2, "test": 6}
    with pytest.raises(ValueError, match="`test_split` 'secret' is not in .* which has test, train, validation"):
        load_images(folder, test_split="secret")
    with pytest.raises(ValueError, match="`validation_fraction` 0.3 has no use: there is a validation split already"):
        load_images(folder, validation_fraction=0.3)
    with pytest.raises(ValueError, match="`label_column` 'img' holds images"):
        load_images(folder, label_column="img")
    with pytest.raises(ValueError, match="can't have two roles"):
        load_images(folder, train_split="test")


def test_parquet_file_and_glob(tmp_path):
    folder = write_parquet(tmp_path, train=(10, 0), other=(10, 5))
    assert sum(map(len, load_images(f"{folder}/data/train-00000-of-00001.parquet").splits.values())) == 10
    assert sum(map(len, load_images(f"{folder}/data/*.parquet").splits.values())) == 20


def test_folder_of_images(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number, image in enumerate(make_pixels(5)):
            (tmp_path / "train" / label / f"{number}.png").write_bytes(png(image))
    source = load_images(str(tmp_path))
    assert (source.image_column, source.label_column, source.label_names) == ("image", "label", ["cat", "dog"])
    assert len(source.splits["train"]) == 9 and len(source.splits["validation"]) == 1


def test_a_stream_has_the_same_split_for_any_reader(tmp_path):
    folder = write_parquet(tmp_path, train=(60, 0), other=(60, 7))
    name = f"{folder}/data/*.parquet"
    source = load_images(name, streaming=True, validation_fraction=0.3, seed=2)
    train, validation = contents(source.splits["train"]), contents(source.splits["validation"])
    assert len(train) + len(validation) == 120 and not set(train) & set(validation)
    assert 20 < len(validation) < 52
    shards = [source.splits["validation"].shard(2, index) for index in (0, 1)]
    assert sorted(contents(shards[0]) + contents(shards[1])) == sorted(validation)
    assert next(iter(source.splits["train"]))["img"].size == (5, 6)
    limited = load_images(name, streaming=True, max_images=3)
    assert len(list(limited.splits["train"])) == 3


def test_a_stream_is_cut_twice(tmp_path):
    write_parquet(tmp_path, **{f"part{number}": (30, number) for number in range(4)})
    name = f"{tmp_path}/data/*.parquet"
    fractions = {"validation_fraction": 0.1, "test_fraction": 0.05}
    source = load_images(name, streaming=True, seed=2, **fractions)
    parts = {role: contents(split) for role, split in source.splits.items()}
    assert all(parts.values()) and len(parts["train"]) > 90
    assert sorted(sum(parts.values(), [])) == sorted(
        png(image) for seed in range(4) for image in make_pixels(30, seed)
    )
    shards = [source.splits["test"].shard(4, index) for index in range(4)]
    assert [image for shard in shards for image in contents(shard)] == parts["test"]
    row = next(iter(source.splits["train"]))
    assert row["img"].size == (5, 6) and row.keys() == source.splits["train"].features.keys() == {"img", "label"}
    alone = load_images(name, streaming=True, seed=2, test_fraction=0.05, fold_validation=True)
    assert contents(alone.splits["test"]) == parts["test"]


def test_max_images_is_a_seeded_choice(tmp_path):
    folder = write_parquet(tmp_path, train=(60, 0), test=(20, 1))
    source = load_images(folder, max_images=4, seed=1)
    assert [len(split) for split in source.splits.values()] == [4, 4, 4]
    assert contents(source.splits["test"]) != [png(image) for image in make_pixels(20, 1)[:4]]
    assert contents(source.splits["test"]) == contents(load_images(folder, max_images=4, seed=1).splits["test"])


def saved(folder, **columns):
    datasets.Dataset.from_dict(columns).to_parquet(folder / "train.parquet")
    return str(folder / "train.parquet")


def test_columns_are_found_or_asked_for(tmp_path):
    split = dataset_of(make_pixels())
    two = split.add_column("second", split["label"]).cast_column("second", split.features["label"])
    two.to_parquet(tmp_path / "labels.parquet")
    name = str(tmp_path / "labels.parquet")
    with pytest.raises(ValueError, match=r"`label_column` must be given.*label, second could be it"):
        load_images(name)
    assert load_images(name, label_column="second").label_column == "second"
    assert load_images(name, label_column="none").label_column is None
    with pytest.raises(ValueError, match=r"'x' is not a column. Columns: image \(.*\), label \(.*\), second"):
        load_images(name, image_column="x", label_column="none")


@pytest.mark.parametrize("content", ["http://127.0.0.1:9/a.png", "/etc/hostname"])
def test_text_is_not_an_image_column(tmp_path, content):
    name = saved(tmp_path, image=[content] * 20, label=[0] * 20)
    with pytest.raises(
        ValueError, match=r"`image_column` must be given: no column holds images. Columns: image \(str"
    ):
        load_images(name)
    with pytest.raises(ValueError, match="doesn't hold images or their bytes"):
        load_images(name, image_column="image")


def test_bytes_are_an_image_column_when_named(tmp_path):
    name = saved(tmp_path, data=[png(image) for image in make_pixels(20)])
    source = load_images(name, image_column="data")
    assert len(source.splits["train"]) == 18 and source.label_column is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation_fraction": 0.0}, "`validation_fraction` must lie between 0 and 1, got 0.0.*`fold_validation`"),
        ({"validation_fraction": 1.0}, "`validation_fraction` must lie between 0 and 1, got 1.0"),
        ({"test_fraction": -0.5}, "`test_fraction` must lie between 0 and 1, got -0.5"),
        ({"validation_fraction": 0.01}, "`validation_fraction` 0.01 of 10 images leaves no image for validation"),
        ({"validation_fraction": 0.99}, "`validation_fraction` 0.99 of 10 images leaves nothing to train on"),
        ({"max_images": 0}, "`max_images` must be at least 1, got 0"),
    ],
)
def test_a_split_that_would_be_empty_is_refused(tmp_path, arguments, message):
    folder = write_parquet(tmp_path, train=(10, 0))
    with pytest.raises(ValueError, match=message):
        load_images(folder, **arguments)


def test_an_option_without_effect_is_refused(tmp_path):
    folder = write_parquet(tmp_path, train=(10, 0), test=(10, 1))
    with pytest.raises(ValueError, match="`test_fraction` 0.1 has no use"):
        load_images(folder, test_fraction=0.1)
    with pytest.raises(ValueError, match="`revision` is for data sets on the Hub"):
        load_images(folder, revision="main")
    with pytest.raises(ValueError, match="'digits' takes no `streaming`"):
        load_images("digits", streaming=True)


@pytest.mark.parametrize("streaming", [False, True])
def test_empty_splits_are_refused(tmp_path, streaming):
    folder = write_parquet(tmp_path, train=(20, 0))
    empty = dataset_of(make_pixels(2)).rename_column("image", "img").select([])
    empty.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="The split 'test' of .* is empty|.test. corresponds to no data"):
        load_images(folder, streaming=streaming)


def test_one_image_can_only_be_trained_on(tmp_path):
    folder = write_parquet(tmp_path, train=(1, 0))
    with pytest.raises(ValueError, match="of 1 images leaves"):
        load_images(folder)
    assert len(load_images(folder, fold_validation=True).splits["train"]) == 1


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere/*.parquet", "~/nowhere"])
def test_a_missing_path_never_goes_to_the_hub(name, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("asked the Hub"))
    with pytest.raises(ValueError, match="`dataset_name`"):
        load_images(name)


@pytest.mark.parametrize("fault", ["cut", "header"])
def test_a_damaged_parquet_file_is_named(tmp_path, own_cache, fault):
    folder = write_parquet(tmp_path, train=(20, 0), test=(20, 1))
    file = tmp_path / "data" / "test-00000-of-00001.parquet"
    content = bytearray(file.read_bytes())
    if fault == "cut":
        del content[-20:]
    else:
        content[6:40] = bytes(34)
    file.write_bytes(content)
    with pytest.raises(ValueError, match="can't be loaded: .*test-00000-of-00001.parquet is damaged"):
        load_images(folder)
    assert not list(own_cache.rglob("*-test.arrow"))
