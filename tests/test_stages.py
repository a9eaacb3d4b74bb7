import json

import pytest

from hf_igpt.stages import describe_differences, is_finished, write_stage
from hf_igpt.storage import staged_folder


AWKWARD = "stage [1] (ü) 像 素"
INPUTS = {"images": "digits", "size": {"height": 8, "width": 8}, "seed": 0, "crop_size": None}


@pytest.fixture
def stage(tmp_path):
    with staged_folder(tmp_path / AWKWARD) as staged:
        (staged / "data").write_bytes(b"12345")
        write_stage(staged, INPUTS)
    return tmp_path / AWKWARD


def test_a_stage_is_finished_for_the_inputs_it_was_made_from(stage):
    assert is_finished(stage, INPUTS)
    assert is_finished(str(stage), {**INPUTS, "size": {"width": 8, "height": 8}})
    # What JSON has no type for comes back as what it was written as.
    assert is_finished(stage, {**INPUTS, "size": dict(INPUTS["size"])})


def test_a_stage_that_is_absent_or_damaged_is_not_finished(stage, caplog):
    assert not is_finished(stage.with_name("absent"), INPUTS)
    (stage / "data").write_bytes(b"12346")
    assert not is_finished(stage, INPUTS)
    assert "data in" in caplog.text and "has changed" in caplog.text
    (stage / "data").write_bytes(b"12345")
    assert is_finished(stage, INPUTS)
    (stage / "manifest.json").unlink()
    assert not is_finished(stage, {"seed": 7})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"crop_size": 32}, "crop_size was None and is now 32"),
        ({"size": {"height": 8, "width": 9}}, "size was {'height': 8, 'width': 8} and is now"),
        ({"more": True}, "more was None and is now True"),
    ],
)
def test_other_inputs_are_named(stage, change, words):
    before = (stage / "data").read_bytes()
    with pytest.raises(ValueError, match="was made from something else: .*Choose another output folder") as error:
        is_finished(stage, {**INPUTS, **change})
    assert words in str(error.value) and AWKWARD in str(error.value)
    assert (stage / "data").read_bytes() == before


def test_a_complete_folder_that_is_no_stage_is_refused(tmp_path):
    with staged_folder(tmp_path / "other") as staged:
        (staged / "data").write_bytes(b"1")
    with pytest.raises(ValueError, match="seed was None and is now 0"):
        is_finished(tmp_path / "other", INPUTS)


def test_differences():
    assert describe_differences({"a": [1, 2]}, {"a": (1, 2)}) == ""
    assert describe_differences({"a": 1}, {"a": 1, "b": None}) == ""
    assert describe_differences({"a": 1, "b": 2}, {"b": 3}) == "a was 1 and is now None, b was 2 and is now 3"
    for damaged in (None, [], "text", 3):
        assert describe_differences(damaged, {"a": 1}) == "a was None and is now 1"


def test_the_note_is_json(stage):
    assert json.loads((stage / "stage.json").read_text()) == INPUTS
