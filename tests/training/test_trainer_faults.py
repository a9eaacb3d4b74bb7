"""What a run survives: kills, damage, a full disk, numbers that aren't finite. Faults are caused, not imitated."""

import itertools
import json
import math
import os
import pickle
import shutil
from collections import Counter
from pathlib import Path

import fault_harness
import pytest
import torch
from fault_harness import make_trainer, random_model
from transformers import TrainingArguments

from hf_igpt import ImageGPTVQVAEConfig, ImageGPTVQVAEModel
from hf_igpt.storage import LOCK, DamagedFolderError, list_checkpoints, staged_folder, verify_folder
from hf_igpt.training.trainer import IGPTTrainer, NonFiniteTrainingError
from hf_igpt.training.vqvae_trainer import VQVAETrainer
from hf_igpt.weights import weights_digest


AWKWARD = "run [1] (ü) 像 素"


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    make_trainer(folder).train()
    assert [step for step, _ in list_checkpoints(folder)] == [2, 4, 6]
    return folder


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != LOCK]


def all_bytes(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# Kills


def test_kill_at_file_operations_of_a_save(harness, tmp_path):
    """A sample; benchmarks/fault_injection.py does all of them."""
    answer = harness("crash_points", tmp_path, sample=14, save_total_limit=1)
    outcomes = [trial["outcome"] for trial in answer["trials"]]
    assert answer["operations"] >= 50 and len(outcomes) == 14
    assert set(outcomes) == {"ok checkpoint-2", "ok checkpoint-4"}, Counter(outcomes)
    assert outcomes == sorted(outcomes), "once the new checkpoint is there, it stays"


@pytest.mark.parametrize(("rank", "sample"), [(0, 4), (1, 3)])
def test_kill_of_one_process_of_two_during_a_save(harness, tmp_path, rank, sample):
    answer = harness("crash_points", tmp_path, processes=2, rank=rank, sample=sample, save_total_limit=1)
    outcomes = [trial["outcome"] for trial in answer["trials"]]
    assert len(outcomes) == sample
    assert set(outcomes) <= {"ok checkpoint-2", "ok checkpoint-4"}, answer["trials"]


def test_fault_free_saves_of_two_processes(harness, tmp_path):
    answer = harness("repeated_saves", tmp_path, saves=25)
    assert [trial["outcome"] for trial in answer["trials"]] == ["ok"] * 25


def test_kills_at_random_moments(harness, tmp_path):
    answer = harness("random_kills", tmp_path, trials=2, kills=2, seed=1)
    assert {trial["outcome"] for trial in answer["trials"]} == {"ok"}, answer
    assert sum(len(trial["newest_at_kill"]) for trial in answer["trials"]) >= 2


def test_data_order_of_two_processes_and_after_a_resume(harness, tmp_path):
    """A resume in the middle of the second epoch, where accelerate alone leaves the sampler at the first."""

    def seen(name: str, processes: int, starts: list[dict]) -> dict[int, list[int]]:
        images: dict[int, list[int]] = {}
        for start in harness("start_in_children", tmp_path / name, processes=processes, starts=starts, record=True):
            assert [status for status, _ in start] == [0] * processes
            for step, *batch in itertools.chain(*[result["images"] for _, result in start]):
                images[step] = sorted(images.get(step, []) + batch)
        return images

    # The schedule has 26 steps in every run; the second start of a resumed run is what is compared.
    whole = {"max_steps": 26, "save_steps": 13}
    one = seen("one", 1, [whole])
    two = seen("two", 2, [whole])
    assert sorted(itertools.chain(*[one[step] for step in range(1, 11)])) == list(range(20))
    assert one[1] != one[11]
    assert one == two and len(one) == 26
    for name, processes in (("one", 1), ("two", 2)):
        shutil.rmtree(tmp_path / name / "checkpoint-26")
        resumed = seen(name, processes, [whole])
        assert resumed == {step: one[step] for step in range(14, 27)}


@pytest.mark.parametrize("bytes_left", [0, 20_000])
def test_full_disk_keeps_older_checkpoints_and_the_same_command_resumes(harness, tmp_path, bytes_left):
    reference = harness("start_in_children", tmp_path / "reference")[0][0][1]
    answer = harness("full_disk", tmp_path / "run", bytes_left=bytes_left)
    assert answer["status"] == 1
    assert answer["left"] == [".lock", "checkpoint-2"]
    status, resumed = answer["resumed"]
    assert status == 0 and resumed == reference


# Damage


FILES = [
    "config.json",
    "generation_config.json",
    "manifest.json",
    "model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.json",
]
# One of those that load the checkpoint where the package is not installed.
CODE_FILE = "modeling_igpt.py"
DAMAGES = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "removed": lambda path: path.unlink(),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-7] + b"\xff" + path.read_bytes()[-6:]),
}


def test_list_of_files_is_whole(finished_run):
    found = {path.name for path in (finished_run / "checkpoint-6").iterdir()}
    assert sorted(name for name in found if not name.endswith("_igpt.py")) == FILES
    assert CODE_FILE in found


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, CODE_FILE])
def test_damaged_newest_checkpoint_is_passed_over_with_a_warning(run, caplog, name, damage):
    DAMAGES[damage](run / "checkpoint-6" / name)
    assert make_trainer(run).newest_checkpoint() == run / "checkpoint-4"
    assert any("checkpoint-6" in text and name in text for text in caplog.messages)
    with pytest.raises(DamagedFolderError, match=name):
        make_trainer(run).train(resume_from_checkpoint=run / "checkpoint-6")


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_run_goes_on_from_the_one_before_to_the_same_end(finished_run, run, name):
    DAMAGES["removed"](run / "checkpoint-6" / name)
    trainer = make_trainer(run)
    trainer.train(resume_from_checkpoint=True)
    before, after = finished_run / "checkpoint-6", run / "checkpoint-6"
    assert (before / "model.safetensors").read_bytes() == (after / "model.safetensors").read_bytes()
    states = [torch.load(folder / "optimizer.pt", weights_only=True)["state"] for folder in (before, after)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    verify_folder(run / "checkpoint-6")


def test_no_complete_checkpoint_is_an_error_and_no_start_from_zero(run):
    for _, checkpoint in list_checkpoints(run):
        DAMAGES["flipped"](checkpoint / "optimizer.pt")
    before = all_bytes(run)
    with pytest.raises(DamagedFolderError, match="None of the 3 checkpoints"):
        make_trainer(run).train(resume_from_checkpoint=True)
    assert all_bytes(run) == before


def test_checkpoint_without_optimizer_is_not_resumed_from(tmp_path, caplog):
    make_trainer(tmp_path, max_steps=2, save_only_model=True).train()
    with pytest.raises(DamagedFolderError, match="None of the 1 checkpoints"):
        make_trainer(tmp_path).newest_checkpoint()
    assert "was saved without *optim*" in caplog.text


class Payload:
    """Unpickled freely, it writes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_pickle_in_a_checkpoint_is_not_run(finished_run, tmp_path, name):
    marker = tmp_path / "marker"
    with staged_folder(tmp_path / "run" / "checkpoint-6") as staged:
        shutil.copytree(finished_run / "checkpoint-6", staged, dirs_exist_ok=True)
        torch.save({"state": Payload(marker)}, staged / name)
    with pytest.raises(pickle.UnpicklingError):
        make_trainer(tmp_path / "run", max_steps=8).train(resume_from_checkpoint=True)
    assert not marker.exists()
    torch.load(tmp_path / "run" / "checkpoint-6" / name, weights_only=False)
    assert marker.exists(), "the payload works"


@pytest.mark.parametrize("name", ["training_args.bin", "pytorch_model.bin"])
def test_pickle_beside_the_files_of_a_checkpoint_is_not_opened(finished_run, tmp_path, name):
    marker = tmp_path / "marker"
    with staged_folder(tmp_path / "run" / "checkpoint-6") as staged:
        shutil.copytree(finished_run / "checkpoint-6", staged, dirs_exist_ok=True)
        torch.save({"state": Payload(marker)}, staged / name)
    trainer = make_trainer(tmp_path / "run", max_steps=8)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 8 and not marker.exists()


# Numbers that aren't finite


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("fault", ["nan", "constant", "gradient"])
def test_step_that_is_not_finite_stops_every_process_before_it_is_applied(harness, tmp_path, fault, processes):
    answer = harness("faulty_step", tmp_path, processes=processes, fault=fault, rank=processes - 1)
    assert len(answer["results"]) == processes
    for status, result in answer["results"]:
        assert status == 0 and result["error"] == "NonFiniteTrainingError"
        assert result["unchanged"], "the step was applied"
        assert [entry["step"] for entry in result["logged"]] == [1, 2, 3]
        assert all(1 < entry["loss"] < 5 for entry in result["logged"])
        number = {"nan": "loss nan", "constant": "loss inf", "gradient": "gradient norm inf"}[fault]
        rank = 0 if fault == "gradient" else processes - 1
        assert number in result["message"] and f"on process {rank}" in result["message"]
        assert "Step 4 has" in result["message"] and "at learning rate 0.005." in result["message"]
    assert answer["checkpoints"] == [2]


def test_fault_in_one_accumulated_batch_stops_the_step(tmp_path):
    trainer = make_trainer(tmp_path, fault_harness.FaultyTrainer, gradient_accumulation_steps=2, max_grad_norm=0.0)
    with pytest.raises(NonFiniteTrainingError, match="Step 4 has loss nan"):
        trainer.train()


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.lm_head.weight[1, 2] = math.nan
    with pytest.raises(NonFiniteTrainingError, match=r"`lm_head\.weight` has 1 values"):
        trainer.save_model(tmp_path / "model")
    with pytest.raises(NonFiniteTrainingError, match=r"`lm_head\.weight` has 1 values"):
        trainer._save_checkpoint(trainer.model, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["quantizer.codebook", "quantizer.ema_sums", "decoder.project.bias"])
def test_codes_that_are_not_finite_are_not_saved(tmp_path, name):
    """They are no parameters."""
    sizes = {"codebook_size": 5, "code_size": 3, "hidden_size": 4, "num_residual_blocks": 0}
    model = ImageGPTVQVAEModel(ImageGPTVQVAEConfig(**sizes))
    arguments = TrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none", max_steps=1)
    trainer = VQVAETrainer(model, arguments)
    trainer.save_model(tmp_path / "good")
    model.state_dict()[name].view(-1)[2] = math.nan
    for save in (lambda: trainer.save_model(tmp_path / "bad"), lambda: trainer._save_checkpoint(model, None)):
        with pytest.raises(NonFiniteTrainingError, match=f"`{name}` has 1 values"):
            save()
    assert {path.name for path in tmp_path.iterdir()} == {"good", "run"} and not list((tmp_path / "run").iterdir())


class EvaluatingTrainer(IGPTTrainer):
    """Evaluates to a given loss at each step."""

    losses: dict[int, float] = {}

    def evaluate(self, *args, **kwargs):
        self.log(metrics := {"eval_loss": self.losses[self.state.global_step]})
        return metrics


def train_with_evaluations(folder: Path, losses: dict[int, float], **arguments) -> IGPTTrainer:
    kind = type("Evaluating", (EvaluatingTrainer,), {"losses": losses})
    evaluation = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_loss"}
    trainer = make_trainer(folder, kind, greater_is_better=False, **evaluation, **arguments)
    trainer.train(resume_from_checkpoint=trainer.newest_checkpoint())
    return trainer


def test_evaluation_that_is_not_finite_is_never_best(tmp_path):
    trainer = train_with_evaluations(tmp_path, {2: math.nan, 4: 2.0, 6: math.nan})
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")


def test_one_bad_batch_spoils_the_evaluation_loss(tmp_path):
    class Spoilt(IGPTTrainer):
        batches = 0

        def prediction_step(self, *args, **kwargs):
            self.batches += 1
            loss, logits, labels = super().prediction_step(*args, **kwargs)
            return loss * (math.nan if self.batches == 2 else 1), logits, labels

    trainer = make_trainer(tmp_path, Spoilt, per_device_eval_batch_size=4)
    loss = trainer.evaluate(fault_harness.token_dataset())["eval_loss"]
    assert trainer.batches == 5 and math.isnan(loss)


# Rotation and best


@pytest.mark.parametrize(
    ("limit", "losses", "kept", "best"),
    [
        (1, {2: 1.0, 4: 2.0, 6: 3.0}, [2, 6], 2),
        (1, {2: 3.0, 4: 2.0, 6: 1.0}, [6], 6),
        (2, {2: 3.0, 4: 1.0, 6: 2.0}, [4, 6], 4),
        (2, {2: 1.0, 4: 3.0, 6: 2.0}, [2, 6], 2),
        (None, {2: 1.0, 4: 3.0, 6: 2.0}, [2, 4, 6], 2),
    ],
)
def test_rotation_keeps_the_newest_and_the_best(tmp_path, limit, losses, kept, best):
    trainer = train_with_evaluations(tmp_path, losses, save_total_limit=limit)
    assert [step for step, _ in list_checkpoints(tmp_path)] == kept
    assert hidden(tmp_path) == []
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / f"checkpoint-{best}")
    assert trainer.args.save_total_limit == limit


def test_best_model_is_loaded_at_the_end_and_checked_first(tmp_path):
    losses = {2: 1.0, 4: 3.0, 6: 2.0}
    trainer = train_with_evaluations(tmp_path / "whole", losses, load_best_model_at_end=True)
    best = random_model().from_pretrained(tmp_path / "whole" / "checkpoint-2")
    assert weights_digest(trainer.model) == weights_digest(best)
    DAMAGES["flipped"](tmp_path / "whole" / "checkpoint-2" / "model.safetensors")
    with pytest.raises(DamagedFolderError, match=r"model\.safetensors"):
        train_with_evaluations(tmp_path / "whole", losses, load_best_model_at_end=True)


def test_rotation_counts_committed_checkpoints_of_this_runs_past_only(run):
    (run / "checkpoint-3").mkdir()
    DAMAGES["emptied"](run / "checkpoint-4" / "optimizer.pt")
    make_trainer(run, max_steps=8, save_total_limit=2).train(resume_from_checkpoint=True)
    assert [step for step, _ in list_checkpoints(run)] == [3, 4, 6, 8]


def test_best_checkpoint_survives_a_move_of_the_folder(tmp_path):
    train_with_evaluations(tmp_path / "before", {2: 1.0, 4: 2.0, 6: 3.0})
    (tmp_path / "before").rename(tmp_path / "after")
    trainer = train_with_evaluations(tmp_path / "after", {8: 4.0}, max_steps=8, save_total_limit=1)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "after" / "checkpoint-2")
    assert [step for step, _ in list_checkpoints(tmp_path / "after")] == [2, 8]


# Folders


def test_run_in_a_folder_with_an_awkward_name(tmp_path):
    make_trainer(tmp_path / AWKWARD, max_steps=4, save_total_limit=1).train()
    make_trainer(tmp_path / AWKWARD, save_total_limit=1).train(resume_from_checkpoint=True)
    assert {path.name for path in (tmp_path / AWKWARD).iterdir()} == {LOCK, "checkpoint-6"}


def test_finished_run_started_again_changes_nothing(run, finished_run):
    before = all_bytes(run)
    trainer = make_trainer(run)
    weights = weights_digest(trainer.model)
    trainer.train(resume_from_checkpoint=trainer.newest_checkpoint())
    assert trainer.state.global_step == 6
    assert (
        weights_digest(trainer.model)
        == weights_digest(random_model().from_pretrained(run / "checkpoint-6"))
        != weights
    )
    assert all_bytes(run) == before


def test_old_checkpoints_are_neither_overwritten_nor_ignored(run):
    before = all_bytes(run)
    with pytest.raises(ValueError, match="holds checkpoint-6 of an earlier run"):
        make_trainer(run).train()
    assert all_bytes(run) == before


def test_resume_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(DamagedFolderError, match="manifest"):
        make_trainer(tmp_path).train(resume_from_checkpoint=tmp_path / "checkpoint-7")


def test_file_in_place_of_the_output_folder_ends_the_run_before_its_first_step(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    (tmp_path / "run").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file.*choose another"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_output_folder_deleted_during_a_run_is_made_again(tmp_path):
    class Deleting(IGPTTrainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 3:
                shutil.rmtree(self.args.output_dir, ignore_errors=True)
            return super().training_step(*args, **kwargs)

    make_trainer(tmp_path / "run", Deleting).train()
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [4, 6]


def test_no_secret_reaches_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "canary-of-the-environment")
    trainer = make_trainer(tmp_path / "run", hub_token="canary-of-the-arguments", run_name="canary-of-the-environment")
    trainer.train()
    trainer.save_model(tmp_path / "model")
    files = all_bytes(tmp_path)
    assert "run/checkpoint-6/training_args.json" in files and "model/training_args.json" in files
    assert [name for name, data in files.items() if b"canary" in data or name.endswith("training_args.bin")] == []
    assert trainer.args.hub_token == "canary-of-the-arguments"


def test_publishing_while_training_is_refused(tmp_path, monkeypatch):
    arguments = make_trainer(tmp_path).args
    monkeypatch.setattr(arguments, "push_to_hub", True)
    with pytest.raises(ValueError, match="`push_to_hub` must be off"):
        IGPTTrainer(random_model(), arguments)


def test_saved_model_replaces_only_a_model(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.save_model(tmp_path / "model")
    trainer.save_model(tmp_path / "model")
    verify_folder(tmp_path / "model", needed=["model.safetensors", "config.json", "training_args.json"])
    with pytest.raises(ValueError, match="`output_dir` must name a folder"):
        trainer.save_model()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"c")
    with pytest.raises(ValueError, match="isn't ours to replace"):
        trainer.save_model(tmp_path / "photos")
