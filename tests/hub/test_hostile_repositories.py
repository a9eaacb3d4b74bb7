"""Repositories whose files name code of theirs or of others, and what is asked of the Hub when they are loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load
from tiny_models import tiny_causal

from hf_igpt import IGPTImageProcessor


# Does everything once without the package and once with it, and reports what became of each as one JSON object.
LOADING = """
import importlib.abc, json, sys
from pathlib import Path

class WithoutPackage(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_igpt":
            raise ModuleNotFoundError(name)

without = WithoutPackage()
sys.meta_path.insert(0, without)
import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM, pipeline

compiled = []
sys.addaudithook(lambda event, args: compiled.append(str(args[1])) if event == "compile" and len(args) > 1 else None)
found = {}

def attempt(name, call):
    try:
        call()
        found[name] = "loaded"
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"

def load_everything(label, trusted):
    for name in sys.argv[1].split(","):
        for load in (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM):
            key = f"{label} {trusted} {name} {load.__name__}"
            attempt(key, lambda: load.from_pretrained(name, trust_remote_code=trusted))
        for task in ("image-completion", "image-feature-extraction", "theirs"):
            attempt(f"{label} {trusted} {name} {task}", lambda: pipeline(task, name, trust_remote_code=trusted))

for trusted in (False, None):
    load_everything("without", trusted)
sys.meta_path.remove(without)
import hf_igpt
for trusted in (False, None):
    load_everything("with", trusted)
for name in [*sys.argv[1].split(","), *sys.argv[2].split(",")]:
    for load in (hf_igpt.ImageGPTConfig, hf_igpt.ImageGPTForCausalImageModeling, hf_igpt.IGPTImageProcessor):
        attempt(f"own {name} {load.__name__}", lambda: load.from_pretrained(name))
found["modules"] = [name for name in sys.modules if "evil" in name or name.startswith("transformers_modules.")]
found["compiled"] = [path for path in compiled if "evil" in path or "transformers_modules" in path]
found["ran"] = Path("ran").exists()

attempt("trusted", lambda: AutoConfig.from_pretrained("evil/unregistered", trust_remote_code=True))
found["payload works"] = Path("ran").exists()
print()  # behind transformers' question
print(json.dumps(found))
"""
WEIGHTS = "model.safetensors"
PAYLOAD = b'from pathlib import Path\nPath("ran").touch()\nraise ImportError("payload-was-run")\n'
LOCAL = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForCausalLM": "evil.Model"}
ELSEWHERE = {name: f"evil/code--{target}" for name, target in LOCAL.items()}
PIPELINES = {name: {"impl": "evil.P", "pt": ["AutoModel"]} for name in ("image-completion", "theirs")}
SHARDS = {
    "someone/sharded": "part-1.safetensors",
    "evil/parent": "../../../evil/other/resolve/main/secret.safetensors",
    "evil/absolute": "/dev/shm/secret.safetensors",
}


def honest_files(folder: Path) -> dict[str, bytes]:
    model = tiny_causal(torch.float32)
    model.save_pretrained(folder)
    palette = np.random.default_rng(0).integers(0, 256, (10, 3))
    IGPTImageProcessor(size={"height": 3, "width": 4}, palette=palette).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed(files: dict[str, bytes], auto_map: dict, **fields) -> dict[str, bytes]:
    """Files whose config and image processor name code that is in `evil.py`, if anywhere."""
    config = json.loads(files["config.json"]) | {"auto_map": auto_map, "custom_pipelines": PIPELINES} | fields
    processor_map = {"AutoImageProcessor": auto_map["AutoModel"].replace("Model", "Processor")}
    processor = json.loads(files["preprocessor_config.json"]) | {"auto_map": processor_map}
    texts = {"config.json": config, "preprocessor_config.json": processor}
    return files | {name: json.dumps(content).encode() for name, content in texts.items()} | {"evil.py": PAYLOAD}


def sharded(files: dict[str, bytes], shard: str) -> dict[str, bytes]:
    """Files whose weights are one shard, which is there if its name is one."""
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(load(files[WEIGHTS]), shard)}
    rest = {name: content for name, content in files.items() if name != WEIGHTS}
    there = {} if "/" in shard else {shard: files[WEIGHTS]}
    return rest | there | {f"{WEIGHTS}.index.json": json.dumps(index).encode()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return honest_files(tmp_path_factory.mktemp("honest"))


@pytest.fixture(scope="module")
def reported(files, tmp_path_factory):
    """What the process found, and what it asked of the Hub."""
    folder = tmp_path_factory.mktemp("process")
    repositories = {
        "evil/local-code": changed(files, LOCAL),
        "evil/code-elsewhere": changed(files, ELSEWHERE),
        "evil/kernel-user": changed(files, LOCAL, attn_implementation="evil/kernel"),
        "evil/unregistered": changed(files, LOCAL, model_type="unregistered"),
        **{name: sharded(files, shard) for name, shard in SHARDS.items()},
        "evil/code": {"evil.py": PAYLOAD},
        "evil/kernel": {"evil.py": PAYLOAD},
        "evil/other": {"secret.safetensors": files[WEIGHTS]},
    }
    place = folder / "folder"
    place.mkdir()
    for name, content in repositories["evil/code-elsewhere"].items():
        (place / name).write_bytes(content)
    with HubServer() as hub:
        for name, content in repositories.items():
            hub.add_repo(f"models/{name}", content)
        names = ",".join([*list(repositories)[:3], str(place)])
        environment = os.environ | hub.environment(folder / "home")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", LOADING, names, ",".join(SHARDS)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
        )
        paths = [request.path for request in hub.requests]
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), paths


def outcomes(found: dict, *parts: str) -> dict[str, str]:
    return {name: text for name, text in found.items() if all(part in name.split() for part in parts)}


def test_nothing_is_imported_or_run_without_trust(reported):
    found, _ = reported
    assert (found["modules"], found["compiled"], found["ran"]) == ([], [], False)
    assert [name for name, text in found.items() if "payload-was-run" in str(text)] == ["trusted"]
    assert found["payload works"]


def test_nothing_is_fetched_but_the_data_of_the_repository(reported):
    found, paths = reported
    before_trust = paths[: next(i for i, path in enumerate(paths) if path.endswith("evil.py"))]
    assert any(path.endswith("/config.json") for path in before_trust)
    fetched = [
        path for path in before_trust if path.endswith(".py") or "/evil/code/" in path or "/evil/kernel/" in path
    ]
    assert fetched == []
    others = {path for path in paths if path.endswith(".py")}
    assert others and all("/evil/unregistered/" in path for path in others), "what was trusted, and that alone"


def test_without_the_package_the_flag_is_asked_for(reported):
    found, _ = reported
    texts = outcomes(found, "without")
    assert len(texts) == 2 * 4 * 7
    assert all("trust_remote_code" in text for text in texts.values()), texts


def test_with_the_package_its_own_code_is_used(reported):
    found, _ = reported
    for name, text in outcomes(found, "with").items():
        if "kernel-user" in name and "AutoImageProcessor" not in name:
            assert "`attn_implementation` in a config file must be one of" in text, name
        elif "theirs" in name.split():
            assert "trust_remote_code" in text, name
        else:
            assert text == "loaded", (name, text)
    for name, text in outcomes(found, "own").items():
        if any(shards in name for shards in SHARDS):
            continue
        expected = "`attn_implementation`" if "kernel-user" in name and "Processor" not in name else "loaded"
        assert expected in text, (name, text)


# Shards


def test_shards_of_a_repository_come_from_it_alone(files, reported):
    """The Hub's cache is made of links, which are no links out of the repository."""
    found, paths = reported
    assert outcomes(found, "own", "someone/sharded", "ImageGPTForCausalImageModeling").popitem()[1] == "loaded"
    for name, shard in SHARDS.items():
        if name != "someone/sharded":
            (text,) = outcomes(found, "own", name, "ImageGPTForCausalImageModeling").values()
            assert f"must name .safetensors files beside it, got {shard!r}" in text
    assert [path for path in paths if "part-1" in path]
    assert [path for path in paths if "secret" in path or ".." in path] == []
