import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from hf_igpt.evaluation import Likelihood
from hf_igpt.evaluation.metrics import METRICS, metric_path


COMBINED = """
import json, sys, evaluate
from hf_igpt.evaluation.metrics import METRICS, metric_path
columns = json.loads(sys.argv[1])
paths = [metric_path(name) for name in METRICS]
batches = evaluate.combine(paths)
for rows in (slice(0, 2), slice(2, None)):
    batches.add_batch(**{name: values[rows] for name, values in columns.items()})
at_once = evaluate.combine(paths).compute(**columns)
print(json.dumps([batches.compute(), at_once]))
"""
COLUMNS = {
    "predictions": [0, 1, 2, 3, 9],
    "references": [0, 1, 2, 4, 8],
    "nats": [10.0, 14.0, 18.5, 1e-9, 7.25],
    "tokens": [12] * 5,
    "pixels": [4] * 5,
}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    import evaluate

    caches = str(tmp_path_factory.mktemp("caches"))
    with pytest.MonkeyPatch.context() as patch:
        # Where `evaluate` copies scripts to, and imports them from.
        patch.setattr("evaluate.config.HF_MODULES_CACHE", caches)
        patch.setattr("evaluate.loading.init_dynamic_modules.__defaults__", ("evaluate_modules", caches))
        # A metric that raised keeps its file of inputs locked: the next one would wait for it.
        yield lambda name: evaluate.load(metric_path(name), cache_dir=str(tmp_path_factory.mktemp("inputs")))


def test_combined_in_a_new_process_without_network_or_cache(tmp_path):
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    command = [sys.executable, "-c", COMBINED, json.dumps(COLUMNS)]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    batches, at_once = json.loads(ended.stdout.splitlines()[-1])
    likelihood = Likelihood(np.array(COLUMNS["nats"]), tokens_per_image=12, pixels_per_image=4)
    assert batches == at_once
    assert batches == {
        "accuracy": 0.6,
        "nats_per_token": pytest.approx(likelihood.nats_per_token, rel=1e-15),
        "bits_per_pixel": pytest.approx(likelihood.bits_per_pixel, rel=1e-15),
    }


def test_images_of_several_sizes_weigh_by_their_tokens(load):
    assert load("nats_per_token").compute(nats=[10, 1], tokens=[4, 1]) == {"nats_per_token": 2.2}
    found = load("bits_per_pixel").compute(nats=[10, 1], pixels=[4, 1])
    assert found == {"bits_per_pixel": pytest.approx(2.2 / math.log(2), rel=1e-15)}


def test_sums_are_in_float64(load):
    """In float32 the small images vanish beside the large one."""
    nats = [2.0**27] + [1.0] * 1000
    expected = (2**27 + 1000) / 1001
    assert load("nats_per_token").compute(nats=nats, tokens=[1] * 1001) == {"nats_per_token": expected}


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("nats_per_token", {"nats": [1, math.nan], "tokens": [1, 1]}, "`nats` must be finite, got nan in row 1"),
        ("bits_per_pixel", {"nats": [1, 2, math.inf], "pixels": [1] * 3}, "`nats` must be finite, got inf in row 2"),
        ("nats_per_token", {"nats": [1, 2], "tokens": [3, 0]}, "`tokens` .* at least 1, got 0 in row 1"),
        ("bits_per_pixel", {"nats": [1, 2], "pixels": [1.5, 1]}, "`pixels` must be whole .*, got 1.5 in row 0"),
        ("accuracy", {"predictions": [0, 0.7], "references": [0, 1]}, "`predictions` must be whole .* 0.7 in row 1"),
        ("accuracy", {"predictions": [0, 1], "references": [0, -1]}, "`references` .* got -1 in row 1"),
        ("accuracy", {"predictions": [0, math.nan], "references": [0, 1]}, "`predictions` .* got nan in row 1"),
        ("accuracy", {"predictions": [], "references": []}, "`predictions` is empty: add at least one image"),
        ("nats_per_token", {"nats": [], "tokens": []}, "is empty: add at least one image"),
        ("bits_per_pixel", {"nats": [], "pixels": []}, "is empty: add at least one image"),
        ("accuracy", {"predictions": [1], "references": [1, 2]}, "Mismatch in the number"),
        ("accuracy", {}, "call `add` or `add_batch` at least once"),
    ],
)
def test_what_is_refused(load, name, inputs, message):
    with pytest.raises(ValueError, match=message):
        load(name).compute(**inputs)


def test_the_row_counts_over_batches(load):
    metric = load("nats_per_token")
    for nats in ([1.0, 2.0], [3.0, math.nan]):
        metric.add_batch(nats=nats, tokens=[1, 1])
    with pytest.raises(ValueError, match="got nan in row 3"):
        metric.compute()


def test_a_metric_that_does_not_exist():
    with pytest.raises(ValueError, match="no metric 'f1', only accuracy, nats_per_token, bits_per_pixel"):
        metric_path("f1")
    assert all(os.path.isfile(metric_path(name)) for name in METRICS)
