import http.server
import json
import pickle
import re
import shutil
import threading
import urllib.request
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from image_samples import (
    HEIGHT,
    WIDTH,
    dataset_of,
    dataset_of_rows,
    make_pixels,
    make_processor,
    nearest_colors,
    png,
)

from hf_igpt.configuration_igpt import ImageGPTConfig
from hf_igpt.data import code_version, tokenization
from hf_igpt.data.sources import load_images
from hf_igpt.data.token_store import check_tokens, load_tokens, save_tokens, tokens_info
from hf_igpt.data.tokenization import tokenize
from hf_igpt.image_processing_igpt import IGPTImageProcessor
from hf_igpt.storage import staged_folder


def ids(tokens):
    return np.array(list(tokens["input_ids"]))


@pytest.mark.parametrize("num_proc", [None, 2])
def test_tokens_are_the_nearest_colors(num_proc):
    pixels, processor = make_pixels(), make_processor()
    tokens = tokenize(dataset_of(pixels), processor, batch_size=5, num_proc=num_proc)
    np.testing.assert_array_equal(ids(tokens), nearest_colors(pixels, processor))
    assert len(np.unique(ids(tokens))) > 3
    assert list(tokens["label"]) == [row % 3 for row in range(12)]
    assert tokens.features["label"].names == ["a", "b", "c"]


@pytest.mark.parametrize(("num_colors", "dtype", "size"), [(256, "uint8", 1), (257, "uint16", 2)])
def test_tokens_are_stored_in_one_or_two_bytes(num_colors, dtype, size):
    tokens = tokenize(dataset_of(make_pixels()), make_processor(num_colors=num_colors))
    assert tokens.features["input_ids"] == datasets.Sequence(datasets.Value(dtype), length=HEIGHT * WIDTH)
    assert tokens.data.column("input_ids").nbytes <= 12 * HEIGHT * WIDTH * size + 64


def test_a_source_gives_its_splits(tmp_path):
    dataset_of(make_pixels(20)).rename_column("image", "img").to_parquet(tmp_path / "train.parquet")
    source = load_images(str(tmp_path), validation_fraction=0.2)
    tokens = tokenize(source, make_processor())
    assert {name: len(split) for name, split in tokens.items()} == {"train": 16, "validation": 4}
    expected = np.stack([np.asarray(row["img"]) for row in source.splits["validation"]])
    np.testing.assert_array_equal(ids(tokens["validation"]), nearest_colors(expected, make_processor()))
    unlabelled = tokenize(load_images(str(tmp_path), label_column="none"), make_processor())
    assert unlabelled["train"].column_names == ["input_ids"]


def test_a_stream_gives_the_same_tokens(caplog):
    pixels, processor = make_pixels(), make_processor()
    tokens = tokenize(dataset_of(pixels).to_iterable_dataset(num_shards=3), processor, batch_size=5)
    np.testing.assert_array_equal([row["input_ids"] for row in tokens], nearest_colors(pixels, processor))
    assert tokens_info(tokens)["token_hash"] == processor.token_hash
    damaged = dataset_of(pixels, damaged=[2, 7]).to_iterable_dataset()
    with pytest.raises(ValueError, match="row 2 of the split 'train', file image-2.png"):
        list(tokenize(damaged, processor))
    left = list(tokenize(damaged, processor, skip_damaged=True, batch_size=3))
    expected = np.delete(nearest_colors(pixels, processor), [2, 7], axis=0)
    np.testing.assert_array_equal([row["input_ids"] for row in left], expected)
    assert [row["label"] for row in left] == [row % 3 for row in range(12) if row not in (2, 7)]
    assert "row 7 of the split 'train'" in caplog.text


def test_a_stream_is_stored_where_asked(tmp_path):
    pixels, processor = make_pixels(), make_processor()
    damaged = dataset_of(pixels, damaged=[2, 7]).to_iterable_dataset(num_shards=2)
    with pytest.raises(ValueError, match="row 2 of the split 'train', file image-2.png"):
        tokenize(damaged, processor, stream_folder=tmp_path)
    tokens = tokenize(damaged, processor, skip_damaged=True, batch_size=3, stream_folder=tmp_path)
    np.testing.assert_array_equal(ids(tokens), np.delete(nearest_colors(pixels, processor), [2, 7], axis=0))
    assert list(tokens["label"]) == [row % 3 for row in range(12) if row not in (2, 7)]
    assert tokens.features["input_ids"] == datasets.Sequence(datasets.Value("uint8"), length=HEIGHT * WIDTH)
    assert [where["row"] for where in tokens_info(tokens)["skipped"]] == [2, 7]
    save_tokens(tokens, tmp_path / "saved")
    assert check_tokens(load_tokens(tmp_path / "saved"), processor)["token_hash"] == processor.token_hash
    # Another stream of the same shape doesn't bring back the first one's tokens.
    other = tokenize(dataset_of(make_pixels(seed=5)).to_iterable_dataset(), processor, stream_folder=tmp_path)
    np.testing.assert_array_equal(ids(other), nearest_colors(make_pixels(seed=5), processor))


class CountingProcessor(IGPTImageProcessor):
    calls = 0

    def quantize(self, pixels):
        type(self).calls += 1
        return super().quantize(pixels)


def test_a_second_run_hits_the_cache(monkeypatch, tmp_path):
    """Every change of what makes tokens must miss it: `datasets` would hash our functions by name alone."""
    dataset_of(make_pixels(20)).to_parquet(tmp_path / "train.parquet")

    def computed(seed=1, data_seed=0, **settings):
        settings = {"size": {"height": HEIGHT, "width": WIDTH}, **settings}
        processor = CountingProcessor(palette=make_processor(seed=seed).palette, **settings)
        CountingProcessor.calls = 0
        tokenize(load_images(str(tmp_path), seed=data_seed), processor)
        return CountingProcessor.calls > 0

    assert computed()
    assert not computed()
    assert computed(seed=2)
    assert computed(size={"height": 5, "width": WIDTH})
    assert computed(resample=0)
    assert computed(do_center_crop=True)
    assert computed(data_seed=1)
    with monkeypatch.context() as patch:
        patch.setattr("hf_igpt.data.token_store._package_version", lambda: "99.0")
        assert computed()
        assert not computed()
    assert not computed()
    files = code_version.code_files()
    assert {Path(tokenization.__file__).name, "image_processing_igpt.py", "palette_igpt.py"} <= {f.name for f in files}
    changed = tmp_path / "tokenization.py"
    changed.write_text(files[-1].read_text() + "# changed\n")
    monkeypatch.setattr(code_version, "code_files", lambda: [*files[:-1], changed])
    assert computed()
    assert not computed()


def test_images_in_memory_hit_the_cache_of_another_run():
    processor = CountingProcessor(size={"height": HEIGHT, "width": WIDTH}, palette=make_processor().palette)
    for calls in (1, 1):
        tokens = tokenize(dataset_of(make_pixels()), processor)
        assert CountingProcessor.calls == calls
    np.testing.assert_array_equal(ids(tokens), nearest_colors(make_pixels(), processor))


def test_record_survives_maps_and_disk(tmp_path):
    processor = make_processor(num_colors=300)
    tokens = tokenize(
        datasets.DatasetDict(train=dataset_of(make_pixels()), test=dataset_of(make_pixels(3))), processor
    )
    info = tokens_info(tokens)
    assert info["token_hash"] == processor.token_hash
    assert (info["grid"], info["num_channels"], info["num_values"]) == ([HEIGHT, WIDTH], 1, 300)
    assert info["processor"]["resample"] == 2 and "palette" not in info["processor"]
    assert info["version"] and info["skipped"] == []
    folder = tmp_path / "tokens"
    save_tokens(tokens, folder)
    loaded = load_tokens(folder)
    assert tokens_info(loaded) == info
    for name, split in tokens.items():
        np.testing.assert_array_equal(ids(loaded[name]), ids(split))
    assert loaded["train"].features == tokens["train"].features
    changed = loaded["train"].select([3, 1]).shuffle(seed=0).remove_columns("label").with_format("numpy")
    assert tokens_info(changed) == info
    with pytest.raises(ValueError, match="exists"):
        save_tokens(tokens, folder)
    save_tokens(tokens["test"], folder, overwrite=True, finish=lambda path: (path / "notes.json").write_text("{}"))
    assert set(load_tokens(folder)) == {"train"}
    assert (folder / "notes.json").read_text() == "{}"


def test_no_partial_folder_is_ever_loadable(tmp_path, monkeypatch):
    tokens = tokenize(dataset_of(make_pixels()), make_processor())
    folder = tmp_path / "tokens"

    def disk_full(self, path, **settings):
        (Path(path) / "train").mkdir(parents=True)
        (Path(path) / "dataset_dict.json").write_text('{"splits": ["train"]}')
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(datasets.DatasetDict, "save_to_disk", disk_full)
        with pytest.raises(OSError, match="No space left"):
            save_tokens(tokens, folder)
    assert not folder.exists()
    with pytest.raises(ValueError, match="tokens"):
        load_tokens(folder)
    save_tokens(tokens, folder)
    assert len(load_tokens(folder)["train"]) == 12


@pytest.mark.parametrize("fault", ["flip", "cut", "remove", "add"])
@pytest.mark.parametrize("pattern", ["*.arrow", "dataset_info.json", "state.json"])
def test_damage_on_disk_is_found(tmp_path, fault, pattern):
    folder = tmp_path / "tokens"
    save_tokens(tokenize(dataset_of(make_pixels()), make_processor()), folder)
    file = next(folder.rglob(pattern))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    changes = {
        "flip": lambda: file.write_bytes(content),
        "cut": lambda: file.write_bytes(content[:-1]),
        "remove": file.unlink,
        "add": lambda: file.with_name("data-00001-of-00001.arrow").write_bytes(content),
    }
    changes[fault]()
    with pytest.raises(ValueError, match=file.name if fault != "add" else "data-00001"):
        load_tokens(folder)


@pytest.mark.parametrize("name", ["../../secret.arrow", "/secret.arrow", "..", "", "inner/data.arrow"])
@pytest.mark.parametrize("file", ["train/state.json", "dataset_dict.json"])
def test_names_of_files_elsewhere_are_refused_though_the_manifest_holds(tmp_path, file, name):
    """Whoever publishes tokens writes their manifest too."""
    made = tmp_path / "made"
    save_tokens(tokenize(datasets.DatasetDict(train=dataset_of(make_pixels())), make_processor()), made)
    with staged_folder(tmp_path / "tokens") as staged:
        shutil.copytree(made, staged, dirs_exist_ok=True)
        (staged / "manifest.json").unlink()
        content = json.loads((staged / file).read_text())
        if "splits" in content:
            content["splits"] = ["train", name]
        else:
            content["_data_files"][0]["filename"] = name
        (staged / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{file} must name files beside it, got {name!r}"):
        load_tokens(tmp_path / "tokens")


@pytest.mark.parametrize(
    "content", ["[]", "3", '{"_data_files": 3}', '{"_data_files": [3]}', '{"_data_files": [{}]}', "{"]
)
def test_a_record_of_files_that_is_none(tmp_path, content):
    save_tokens(tokenize(dataset_of(make_pixels()), make_processor()), tmp_path / "made")
    with staged_folder(tmp_path / "tokens") as staged:
        shutil.copytree(tmp_path / "made", staged, dirs_exist_ok=True)
        (staged / "manifest.json").unlink()
        (staged / "train/state.json").write_text(content)
    with pytest.raises(ValueError, match="train/state.json"):
        load_tokens(tmp_path / "tokens")


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_pickle_in_place_of_tokens_is_not_run(tmp_path):
    marker = tmp_path / "marker"
    save_tokens(tokenize(dataset_of(make_pixels()), make_processor()), tmp_path / "made")
    for pattern in ("*.arrow", "state.json", "dataset_info.json"):
        with staged_folder(tmp_path / pattern.replace("*", "tokens")) as staged:
            shutil.copytree(tmp_path / "made", staged, dirs_exist_ok=True)
            (staged / "manifest.json").unlink()
            next(staged.rglob(pattern)).write_bytes(pickle.dumps(Payload(marker)))
        folder = tmp_path / pattern.replace("*", "tokens")
        with pytest.raises(ValueError, match=re.escape(str(folder))):
            load_tokens(folder)
    assert not marker.exists()


def test_damaged_rows_are_named_or_counted(tmp_path):
    pixels, processor = make_pixels(), make_processor()
    content = [{"bytes": png(image), "path": f"{row}.png"} for row, image in enumerate(pixels)]
    content[3]["bytes"] = content[3]["bytes"][:60]
    content[5]["bytes"] = b""
    content[8] = {"bytes": b"<svg>not an image</svg>", "path": None}
    rows = dataset_of_rows(content)
    rows.to_parquet(tmp_path / "train.parquet")
    source = load_images(str(tmp_path), fold_validation=True)
    with pytest.raises(ValueError, match=r"row 3 of the split 'train', file 3.png can't be used: .*truncated"):
        tokenize(source, processor)
    with pytest.raises(ValueError, match=r"The image in row \d of the split 'train'"):
        tokenize(source, processor, num_proc=2)
    tokens = tokenize(source, processor, skip_damaged=True, batch_size=4, num_proc=2)["train"]
    expected = np.delete(nearest_colors(pixels, processor), [3, 5, 8], axis=0)
    np.testing.assert_array_equal(ids(tokens), expected)
    assert list(tokens["label"]) == [row % 3 for row in range(12) if row not in (3, 5, 8)]
    skipped = tokens_info(tokens)["skipped"]
    assert [(row["split"], row["row"], row["file"]) for row in skipped] == [
        ("train", 3, "3.png"),
        ("train", 5, "5.png"),
        ("train", 8, None),
    ]
    assert all(row["reason"] for row in skipped)
    again = tokenize(source, processor, skip_damaged=True, batch_size=4, num_proc=2)["train"]
    assert tokens_info(again)["skipped"] == skipped
    save_tokens(tokens, tmp_path / "tokens")
    assert len(load_tokens(tmp_path / "tokens")["train"]) == 9


def test_nothing_readable_is_an_error():
    with pytest.raises(ValueError, match="No image of the split 'train' can be read.*row 0"):
        tokenize(dataset_of(make_pixels(2), damaged=[0, 1]), make_processor(), skip_damaged=True)


def test_empty_split_is_refused():
    with pytest.raises(ValueError, match="The split 'test' is empty"):
        tokenize({"test": dataset_of(make_pixels()).select([])}, make_processor())


def test_a_processor_without_palette_is_refused():
    with pytest.raises(ValueError, match="palette"):
        tokenize(dataset_of(make_pixels()), IGPTImageProcessor(size=4))


@pytest.fixture
def server():
    """A server on loopback that has an image to give, and the paths it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png(make_pixels(1)[0]))

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", ["{}/a.png", "zip://a.png::{}/a.zip", "{}/a.png::"])
def test_an_address_in_a_row_is_never_fetched(server, form, stream):
    address, asked = server
    rows = dataset_of_rows([{"bytes": None, "path": form.format(address)}])
    with pytest.raises(ValueError, match="row 0.*address"):
        list(tokenize(rows.to_iterable_dataset() if stream else rows, make_processor()))
    assert asked == []
    with urllib.request.urlopen(f"{address}/a.png") as answer:
        assert answer.read() == png(make_pixels(1)[0])
    assert asked == ["/a.png"], "the server counts"


@pytest.mark.parametrize("streaming", [False, True])
def test_no_address_is_fetched_on_the_way_from_a_file(server, tmp_path, streaming):
    address, asked = server
    rows = dataset_of_rows([{"bytes": None, "path": f"{address}/{row}.png"} for row in range(40)])
    pq.write_table(rows.data.table, tmp_path / "train.parquet")
    source = load_images(str(tmp_path), validation_fraction=0.5, max_images=5, streaming=streaming)
    with pytest.raises(ValueError, match="row 0.*address"):
        list(tokenize(source, make_processor())["train"])
    assert asked == []


def test_a_path_in_a_row_needs_its_folder_named(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("in/a.png", "secret.png"):
        (tmp_path / name).write_bytes(png(make_pixels(1)[0]))
    inside = dataset_of_rows([{"bytes": None, "path": str(tmp_path / "in" / "a.png")}])
    with pytest.raises(ValueError, match="row 0.*outside the folders that may be read.*`image_roots`"):
        tokenize(inside, make_processor())
    roots = (str(tmp_path / "in"),)
    tokens = tokenize(inside, make_processor(), image_roots=roots)
    np.testing.assert_array_equal(ids(tokens), nearest_colors(make_pixels(1), make_processor()))
    for path in ("in/../secret.png", "secret.png", "in-other/a.png"):
        outside = dataset_of_rows([{"bytes": None, "path": str(tmp_path / path)}])
        with pytest.raises(ValueError, match="outside the folders"):
            tokenize(outside, make_processor(), image_roots=roots)


def test_a_folder_of_images_reads_its_own_files(tmp_path):
    for number, image in enumerate(make_pixels(10)):
        (tmp_path / f"{number}.png").write_bytes(png(image))
    tokens = tokenize(load_images(str(tmp_path)), make_processor())
    assert len(tokens["train"]) == 9


def test_tokens_fit_their_processor_and_model():
    processor = make_processor(num_colors=7)
    tokens = datasets.DatasetDict(train=tokenize(dataset_of(make_pixels()), processor))
    config = ImageGPTConfig(vocab_size=8, image_size=[HEIGHT, WIDTH], hidden_size=8, num_attention_heads=2)
    for reference in (None, processor, config):
        assert check_tokens(tokens, reference)["num_values"] == 7


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (lambda: make_processor(seed=2), "`token_hash` of the tokens is {own}, of the processor {other}"),
        (lambda: make_processor(height=5), r"`grid` of the tokens is \[6, 5\], of the processor \[5, 5\]"),
        (lambda: model(vocab_size=7), "`num_values` of the tokens is 7, of the model 6"),
        (lambda: model(image_size=5), r"`grid` of the tokens is \[6, 5\], of the model \[5, 5\]"),
        (lambda: model(num_channels=3), "`num_channels` of the tokens is 1, of the model 3"),
    ],
)
def test_tokens_of_another_palette_or_grid_are_refused(reference, message):
    processor, reference = make_processor(), reference()
    tokens = tokenize(dataset_of(make_pixels()), processor)
    other = getattr(reference, "token_hash", None)
    with pytest.raises(ValueError, match=message.format(own=processor.token_hash, other=other)):
        check_tokens(tokens, reference)


def model(**overrides):
    sizes = {"vocab_size": 8, "image_size": [HEIGHT, WIDTH], "hidden_size": 8, "num_attention_heads": 2}
    return ImageGPTConfig(**{**sizes, **overrides})


def edited(tokens, row, position, value):
    """The same tokens with one of them changed; the record stays."""
    changed = ids(tokens)
    changed[row, position] = value
    new = datasets.Dataset.from_dict({"input_ids": changed}, features=tokens.features.copy())
    new.info.description = tokens.info.description
    return new


def test_a_token_outside_the_vocabulary_is_found():
    tokens = tokenize(dataset_of(make_pixels()), make_processor(), label_column="none")
    check_tokens(edited(tokens, 11, 4, 6))
    for value in (7, 255):
        with pytest.raises(ValueError, match=f"must lie in 0 to 6 everywhere.* 0 to {value} and 0 empty rows"):
            check_tokens(edited(tokens, 11, 4, value))


def test_what_is_not_tokens_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no record of its tokens"):
        tokens_info(dataset_of(make_pixels()))
    with pytest.raises(ValueError, match="no record"):
        save_tokens(dataset_of(make_pixels()), tmp_path / "tokens")
    two = {name: tokenize(dataset_of(make_pixels()), make_processor(height=len(name))) for name in ("five!", "sixsix")}
    with pytest.raises(ValueError, match="tokenized differently"):
        tokens_info(two)
    wrong = tokenize(dataset_of(make_pixels()), make_processor()).remove_columns("input_ids")
    with pytest.raises(ValueError, match="no column 'input_ids', only label"):
        check_tokens(wrong)
    record = tokens_info(two["five!"])
    assert json.loads(json.dumps(record)) == record
