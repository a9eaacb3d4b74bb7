"""Pixels that tokens were made of, read again from their images."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_igpt import IGPTImageProcessor
from hf_igpt.data import fit_palette, load_images, tokenize
from hf_igpt.data.token_pixels import pixels_of_tokens, source_of_tokens
from hf_igpt.data.token_store import RECORD_KEY, tokens_info


def write_images(path, count: int = 40, damaged=(), seed: int = 0) -> None:
    rows = []
    for number, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        content = buffer.getvalue()
        rows.append({"bytes": content[: len(content) // 2] if number in damaged else content, "path": None})
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(path)


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_images(tmp_path / "images.parquet")
    return str(tmp_path / "images.parquet")


def processor_for(source) -> IGPTImageProcessor:
    processor = IGPTImageProcessor(size=4)
    return IGPTImageProcessor(size=4, palette=fit_palette(source.split("train"), 9, processor=processor).palette)


OPTIONS = {"validation_fraction": 0.25, "seed": 3, "max_images": 20}


@pytest.mark.parametrize("streaming", [False, True])
def test_the_same_images_are_found_again(images, tmp_path, streaming):
    source = load_images(images, streaming=streaming, **OPTIONS)
    processor = processor_for(source)
    tokens = tokenize(source, processor, stream_folder=tmp_path / "stream" if streaming else None)
    again = source_of_tokens(tokens)
    for split, rows in tokens.items():
        blocks = list(pixels_of_tokens(again, tokens, processor, split))
        pixels = np.concatenate(blocks)
        assert pixels.dtype == np.uint8 and pixels.shape == (len(rows), 4, 4, 3)
        np.testing.assert_array_equal(processor.quantize(pixels).reshape(len(rows), -1), rows["input_ids"])


def test_damaged_images_are_left_out_as_they_were(images, tmp_path):
    write_images(tmp_path / "images.parquet", damaged=(0, 7, 8, 9, 30))
    source = load_images(images, validation_fraction=0.25)
    clean = tmp_path / "clean.parquet"
    write_images(clean)
    processor = processor_for(load_images(str(clean), validation_fraction=0.25))
    tokens = tokenize(source, processor, skip_damaged=True)
    assert len(tokens_info(tokens)["skipped"]) == 5
    pixels = np.concatenate(list(pixels_of_tokens(source_of_tokens(tokens), tokens, processor, "train")))
    assert len(pixels) == len(tokens["train"]) < 30
    with pytest.raises(ValueError, match=r"The split 'train' of .*clean.parquet is not what the tokens were made of"):
        list(pixels_of_tokens(source_of_tokens(tokens, str(clean)), tokens, processor, "train"))


def test_other_images_are_refused(images, tmp_path):
    source = load_images(images)
    processor = processor_for(source)
    tokens = tokenize(source, processor)
    write_images(tmp_path / "others.parquet", seed=1)
    with pytest.raises(ValueError, match="image 0 gives other tokens than are stored. Name the right images"):
        list(pixels_of_tokens(source_of_tokens(tokens, str(tmp_path / "others.parquet")), tokens, processor, "train"))
    fewer = datasets.DatasetDict({"train": tokens["train"].select(range(10))})
    with pytest.raises(ValueError, match="image 10 gives other tokens than are stored"):
        list(pixels_of_tokens(source, fewer, processor, "train"))
    more = datasets.DatasetDict({"train": datasets.concatenate_datasets([tokens["train"], tokens["train"]])})
    more["train"].info.description = tokens["train"].info.description
    with pytest.raises(ValueError, match="it has 36 images, 72 are stored"):
        list(pixels_of_tokens(source, more, processor, "train"))


def test_images_that_are_gone_are_named(images, tmp_path):
    source = load_images(images)
    tokens = tokenize(source, processor_for(source))
    (tmp_path / "images.parquet").rename(tmp_path / "elsewhere.parquet")
    with pytest.raises(ValueError, match="The images that the record of the tokens names are needed again: .*no file"):
        source_of_tokens(tokens)
    found = source_of_tokens(tokens, str(tmp_path / "elsewhere.parquet"))
    assert len(list(pixels_of_tokens(found, tokens, processor_for(source), "validation"))[0]) == 4
    with pytest.raises(ValueError, match="The images that `dataset_name` names are needed again"):
        source_of_tokens(tokens, str(tmp_path / "nothing.parquet"))


def test_tokens_that_do_not_say_where_they_are_from(images):
    source = load_images(images)
    processor = processor_for(source)
    of_nobody = tokenize({"train": source.split("train")}, processor)
    with pytest.raises(ValueError, match="don't say which images they were made of"):
        source_of_tokens(of_nobody)
    tokens = tokenize(source, processor)
    for split in tokens.values():
        split.info.description = split.info.description.replace('"asked_for"', '"asked"')
        assert RECORD_KEY in split.info.description
    with pytest.raises(ValueError, match="don't say how the images were split: an older version made them"):
        source_of_tokens(tokens)
