"""
Runs on another number of processes, as copies of the model (DDP) and in shards (FSDP2): the same losses, and
checkpoints that any of them goes on with.
"""

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from fault_harness import random_model
from fsdp_on_cpu import launch_environment

from hf_igpt import ImageGPTForCausalImageModeling
from hf_igpt.storage import list_checkpoints, verify_folder
from hf_igpt.training.sharding import check_fsdp, check_launcher
from hf_igpt.training.trainer import NEEDED_TO_RESUME


FSDP = launch_environment("fsdp2")
# Dropout draws differ from process to process; without it the processes must not show.
KINDS = {
    "one": (1, {}),
    "two": (2, {}),
    "fsdp": (2, {"fsdp": FSDP}),
    "fsdp, the model's own checkpointing": (
        2,
        {
            "fsdp": launch_environment("fsdp2", "--fsdp_activation_checkpointing", "false"),
            "gradient_checkpointing": True,
        },
    ),
}


def start(harness, folder: Path, kind: str) -> list[dict]:
    processes, arguments = KINDS[kind]
    (ends,) = harness(
        "start_in_children", folder, processes=processes, starts=[{"dropout": 0, **arguments}], record=True
    )
    assert [status for status, _ in ends] == [0] * processes
    return [result for _, result in ends]


def images_of_steps(results: list[dict]) -> dict[int, list[int]]:
    seen: dict[int, list[int]] = {}
    for step, *images in [images for result in results for images in result["images"]]:
        seen[step] = sorted(seen.get(step, []) + images)
    return seen


def compare(results: list[dict], folder: Path, expected: list[dict], whole: Path) -> None:
    """Losses, images, and the weights and moments at the end, of a run that may have been resumed."""
    for result in results:
        assert result["losses"] == [[step, pytest.approx(loss, rel=1e-5)] for step, loss in expected[0]["losses"]]
    seen, wanted = images_of_steps(results), images_of_steps(expected)
    assert seen == {step: wanted[step] for step in seen} and 6 in seen
    weights = [safetensors.torch.load_file(path / "checkpoint-6/model.safetensors") for path in (folder, whole)]
    torch.testing.assert_close(*weights, rtol=0, atol=2e-5)
    states = [torch.load(path / "checkpoint-6/optimizer.pt", weights_only=True)["state"] for path in (folder, whole)]
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def runs(harness, tmp_path_factory) -> dict[str, tuple[Path, list[dict]]]:
    """Whole runs of each kind, of 6 steps of 2 images: the folder, and what each process says."""
    folders = {kind: tmp_path_factory.mktemp("runs") / str(number) for number, kind in enumerate(KINDS)}
    return {kind: (folder, start(harness, folder, kind)) for kind, folder in folders.items()}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "one"])
def test_several_processes_equal_one(runs, kind):
    (folder, results), (whole, expected) = runs[kind], runs["one"]
    assert len(results) == 2 and [step for step, _ in expected[0]["losses"]] == [1, 2, 3, 4, 5, 6]
    compare(results, folder, expected, whole)
    assert len(expected[0]["images"][0]) == 3 and len(results[0]["images"][0]) == 2, "the processes share a step"


def test_checkpoints_of_shards_are_those_of_whole_models(runs):
    names = [
        {path.name for path in (runs[kind][0] / "checkpoint-6").iterdir()} - {"rng_state_1.pth"}
        for kind in ("fsdp", "two")
    ]
    assert names[0] == names[1] and "modeling_igpt.py" in names[0]
    for _, checkpoint in list_checkpoints(runs["fsdp"][0]):
        verify_folder(checkpoint, needed=NEEDED_TO_RESUME)
    folder = runs["fsdp"][0] / "checkpoint-6"
    model, info = ImageGPTForCausalImageModeling.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(model) is ImageGPTForCausalImageModeling
    assert model.config.architectures == ["ImageGPTForCausalImageModeling"]
    assert model.state_dict().keys() == random_model().state_dict().keys()


@pytest.mark.parametrize(
    ("before", "after"), [("one", "two"), ("two", "one"), ("fsdp", "fsdp"), ("fsdp", "one"), ("one", "fsdp")]
)
def test_resume_on_another_number_of_processes(harness, runs, tmp_path, before, after):
    """Reliability T11: the same images in every step, and equal losses."""
    shutil.copytree(runs[before][0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    results = start(harness, tmp_path / "run", after)
    assert sorted(images_of_steps(results)) == [5, 6], "it went on at checkpoint-4"
    compare(results, tmp_path / "run", runs["one"][1], runs["one"][0])


def test_steps_of_another_size_are_refused_with_the_arithmetic(harness, runs, tmp_path):
    shutil.copytree(runs["two"][0], tmp_path / "run")
    answer = harness("refusal", tmp_path / "run", per_device_train_batch_size=3)
    assert (
        "comes from steps of 2 processes x 1 images x 1 accumulated = 2 images, and this run has 1 processes x "
        "3 images x 1 accumulated = 3 images"
    ) in answer["message"]


# What is asked of the launcher


@pytest.mark.parametrize(
    ("flags", "dropout", "checkpointing", "message"),
    [
        ([], 0.1, False, "dropout. 0.1 would give wrong gradients"),
        ([], 0, True, "do the same, twice"),
        (["--fsdp_state_dict_type", "SHARDED_STATE_DICT"], 0, False, "FULL_STATE_DICT, got SHARDED_STATE_DICT"),
        (["--fsdp_version", "1", "--fsdp_sync_module_states", "false"], 0, False, "`fsdp_version` must be 2, got 1"),
    ],
)
def test_settings_that_would_go_wrong_are_refused(monkeypatch, flags, dropout, checkpointing, message):
    from accelerate.utils import FullyShardedDataParallelPlugin

    for name, value in launch_environment("fsdp2", *flags).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        check_fsdp(FullyShardedDataParallelPlugin(), dropout, checkpointing)


def test_sharding_is_not_left_out_in_silence(monkeypatch):
    check_launcher(0.1, True)
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="every process would train a whole copy"):
        check_launcher(0, False)
