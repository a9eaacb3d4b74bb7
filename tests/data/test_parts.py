"""Several processes prepare data together: each a part, and the files are those that one process writes."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
from image_samples import dataset_of, png
from PIL import Image
from two_processes import on_two_processes

from hf_igpt.data.preparation import prepare_palette, prepare_tokens
from hf_igpt.data.sources import load_images
from hf_igpt.data.token_store import load_tokens, token_rows, tokens_info
from hf_igpt.image_processing_igpt import IGPTImageProcessor


SIDE = 4
COUNT = 23
DAMAGED = 17  # in the second process's part


def pixels_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def write_shards(folder: Path, sizes: tuple[int, ...]) -> str:
    """WebDataset's tar files of so many images each, numbered through, with classes; returns their glob."""
    folder.mkdir()
    number = 0
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"train-{shard:03}.tar", "w") as archive:
            for _ in range(size):
                for ending, content in (("png", png(pixels_of(number))), ("cls", str(number % 3).encode())):
                    member = tarfile.TarInfo(f"{number:05}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
                number += 1
    return str(folder / "*.tar")


def prepare(target: Path, name: str, streaming: bool, **options) -> None:
    source = load_images(name, streaming=streaming, **options)
    size = {"height": SIDE, "width": SIDE}
    processor = prepare_palette(target / "palette", source, num_colors=19, size=size, skip_damaged=True)
    prepare_tokens(target / "tokens", source, processor, skip_damaged=True)


def prepare_all(root: Path, target: Path) -> None:
    datasets.config.HF_DATASETS_CACHE = root / "cache"
    prepare(target / "rows", str(root / "rows.parquet"), streaming=False)
    shards = str(root / "shards/*.tar")
    prepare(target / "shards", shards, streaming=True)
    prepare(target / "first", shards, streaming=True, max_images=9)
    prepare(target / "few", str(root / "few/*.tar"), streaming=True, fold_validation=True)


def one_of_two(root: Path) -> None:
    prepare_all(root, root / "two")
    source = load_images(str(root / "rows.parquet"))
    with pytest.raises(ValueError, match=f"The image in row [0-9]+ of the split 'train', file image-{DAMAGED}.png"):
        prepare_tokens(root / "refused", source, IGPTImageProcessor.from_pretrained(root / "two/rows/palette"))
    with pytest.raises(ValueError, match="2 to 4096, got 1"):
        prepare_palette(root / "refused", source, num_colors=1, size={"height": SIDE, "width": SIDE})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Iterator[Path]:
    """The same data prepared by one process, in `one`, and by two."""
    root = tmp_path_factory.mktemp("parts")
    cache = datasets.config.HF_DATASETS_CACHE
    rows = dataset_of([pixels_of(number) for number in range(COUNT)], damaged=[DAMAGED])
    rows.to_parquet(root / "rows.parquet")
    write_shards(root / "shards", (5, 9, 7))
    write_shards(root / "few", (8,))
    prepare_all(root, root / "one")
    on_two_processes(one_of_two, root)
    yield root
    datasets.config.HF_DATASETS_CACHE = cache


def files(folder: Path, *, without: tuple[str, ...]) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name not in without}


def test_two_processes_write_what_one_writes(prepared):
    # Times, and hashes over them.
    changing = ("results.json", "manifest.json")
    for data in ("rows", "shards", "first", "few"):
        one, two = (files(prepared / kind / data / "palette", without=changing) for kind in ("one", "two"))
        assert one == two and "preprocessor_config.json" in one
        # `datasets` gives tokens of a stream another fingerprint every time.
        unstable = changing if data == "rows" else (*changing, "state.json")
        one, two = (files(prepared / kind / data / "tokens", without=unstable) for kind in ("one", "two"))
        assert one == two and any(name.endswith(".arrow") for name in one)


def test_every_image_of_the_shards_is_there_once_in_their_order(prepared):
    processor = IGPTImageProcessor.from_pretrained(prepared / "two/few/palette")
    expected = processor([Image.fromarray(pixels_of(number)) for number in range(8)])["input_ids"]
    tokens = load_tokens(prepared / "two/few/tokens")
    np.testing.assert_array_equal(token_rows(tokens["train"]), expected)
    assert tokens["train"]["label"] == [number % 3 for number in range(8)]
    tokens = load_tokens(prepared / "two/shards/tokens")
    assert sum(map(len, tokens.values())) == 21 and set(tokens) == {"train", "validation"}
    tokens = load_tokens(prepared / "two/first/tokens")
    assert len(tokens["train"]) == 9


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_shards_is_a_data_set(prepared, streaming):
    source = load_images(str(prepared / "few"), fold_validation=True, streaming=streaming)
    assert (source.image_column, source.label_column, set(source.splits)) == ("png", "cls", {"train"})
    assert [row["cls"] for row in source.split("train")] == [number % 3 for number in range(8)]


def test_damage_is_counted_in_the_whole_split(prepared):
    one, two = (tokens_info(load_tokens(prepared / kind / "rows/tokens"))["skipped"] for kind in ("one", "two"))
    assert one == two and [where["file"] for where in one] == [f"image-{DAMAGED}.png"]
    results = [json.loads((prepared / kind / "rows/tokens/results.json").read_text()) for kind in ("one", "two")]
    assert results[0]["metrics"] == results[1]["metrics"]


def test_nothing_is_left_beside_the_folders(prepared):
    assert not (prepared / "refused").exists()
    left = [path.name for path in prepared.rglob(".*") if path.name.startswith(".partial")]
    assert left == []
