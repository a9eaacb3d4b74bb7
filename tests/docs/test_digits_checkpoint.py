"""The checkpoint in the repository is the model that the results tell of."""

import json

import pytest
from code_blocks import ROOT

from hf_igpt import ImageGPTForCausalImageModeling
from hf_igpt.weights import weights_digest


CHECKPOINT = ROOT / "checkpoints" / "digits"
RESULTS = ROOT / "docs" / "results"


def published(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def test_it_is_small_and_holds_no_code():
    files = {path.name for path in CHECKPOINT.iterdir()}
    assert files == {"config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"}
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 10e6


def test_its_weights_are_those_of_the_results():
    digest = weights_digest(ImageGPTForCausalImageModeling.from_pretrained(CHECKPOINT))
    assert digest == published("digits")["model_sha256"] == published("digits-test")["model_sha256"]


def test_it_scores_the_test_images_as_published(run, tmp_path):
    words = ["tokenize_dataset", "--dataset_name", "digits", "--palette", str(CHECKPOINT), "--output_dir", "tokens"]
    tokenized = run(*words, cwd=tmp_path)
    assert tokenized.status == 0, tokenized.stderr
    words = ["evaluate", "--model", str(CHECKPOINT), "--tokens", "tokens", "--split", "test", "--output_dir", "scores"]
    ended = run(*words, cwd=tmp_path)
    assert ended.status == 0, ended.stderr
    scores, expected = ended.results["metrics"], published("digits-test")["metrics"]
    assert scores["num_images"] == expected["num_images"]
    assert scores["nats_per_token"] == pytest.approx(expected["nats_per_token"], abs=1e-4)
    assert scores["unigram_nats_per_token"] == pytest.approx(expected["unigram_nats_per_token"])
