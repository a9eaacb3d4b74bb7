"""Saved folders load without the package, with the code that they carry and with nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_hub_files import ALLOWED
from tiny_models import random_tokens, randomize_, tiny_causal, tiny_config, tiny_masked

import hf_igpt
from hf_igpt import (
    IGPTImageProcessor,
    ImageCompletionPipeline,
    ImageGPTForImageClassification,
    ImageGPTVQVAEConfig,
    ImageGPTVQVAEModel,
)
from hf_igpt.configuration_igpt import AUTO_MAP
from hf_igpt.pipeline_igpt import CUSTOM_PIPELINES


SOURCE = Path(hf_igpt.__file__).parent
HEADS = ("backbone", "causal", "masked", "classifier")
AUTO_CLASSES = [name for name in AUTO_MAP if name != "AutoConfig"]
# A head of the other direction refuses the weights, here as with the package.
REFUSED = {
    ("causal", "AutoModelForMaskedImageModeling"),
    ("masked", "AutoModelForCausalLM"),
    ("classifier", "AutoModelForMaskedImageModeling"),
    ("backbone", "AutoModelForMaskedImageModeling"),
}

# Runs in a process that can't import the package, and reports on every folder and class as one JSON object.
LOADING = '''
import builtins, collections.abc, importlib.abc, json, os, sys, warnings

class WithoutPackage(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_igpt":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, WithoutPackage())
import numpy as np, torch, transformers
from transformers import AutoConfig, AutoImageProcessor

folder, heads, names = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")
tokens = torch.from_numpy(np.load(f"{folder}/tokens.npy"))
found = {}
# What follows is watched where it is code of a checkpoint, or is called by it.
seen = {"imports": [], "variables": [], "files": [], "system": []}
BETWEEN = ("<string>", "<frozen os>", "<frozen _collections_abc>", os.__file__, collections.abc.__file__)

def frames():
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename not in BETWEEN:
            yield frame
        frame = frame.f_back

def is_of_checkpoint(frame):
    return frame.f_globals.get("__name__", "").startswith("transformers_modules.")

def watched_import(name, globals=None, locals=None, fromlist=(), level=0, original=builtins.__import__):
    importer = (globals or {}).get("__name__", "")
    if importer.startswith("transformers_modules."):
        seen["imports"].append([importer.rpartition(".")[2], name, level])
    return original(name, globals, locals, fromlist, level)

def watched_getitem(self, name, original=os._Environ.__getitem__):
    if is_of_checkpoint(next(frames())):
        seen["variables"].append(name)
    return original(self, name)

def watched_iter(self, original=os._Environ.__iter__):
    if is_of_checkpoint(next(frames())):
        seen["variables"].append("all")
    return original(self)

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and any(map(is_of_checkpoint, frames())):
        seen["files"].append([os.path.abspath(arguments[0]), arguments[1]])
    elif event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork")):
        seen["system"].append(event)

builtins.__import__ = watched_import
os._Environ.__getitem__, os._Environ.__iter__ = watched_getitem, watched_iter
sys.addaudithook(watch)
for head in heads:
    path = f"{folder}/{head}"
    config = AutoConfig.from_pretrained(path, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=True)
    found[head] = {"config": type(config).__module__, "processor": type(processor).__module__}
    for name in names:
        try:
            model = getattr(transformers, name).from_pretrained(path, trust_remote_code=True).eval()
        except ValueError as error:
            found[head][name] = {"error": str(error)}
            continue
        with torch.no_grad():
            values = model.pooled_features(tokens)
        found[head][name] = {
            "module": type(model).__module__, "class": type(model).__name__, "features": values.tolist(),
        }
    if head in ("causal", "masked"):
        auto = transformers.AutoModelForCausalLM if head == "causal" else transformers.AutoModelForMaskedImageModeling
        drawn = auto.from_pretrained(path, trust_remote_code=True).eval().generate(num_return_sequences=2)
        images = processor.decode(drawn[:, -12:])
        assert processor(images, return_tensors="pt")["input_ids"].shape == (2, 12)
assert "hf_igpt" not in sys.modules
found["seen"] = json.loads(json.dumps(seen))
for entries in seen.values():
    entries.clear()
# The same done by a checkpoint's code: what isn't seen here wouldn't have been there.
CONTROL = """if 1:
    import os, socket, subprocess, colorsys
    os.environ.get("FIRST"), os.getenv("SECOND"), "THIRD" in os.environ, dict(os.environ)
    open(os.devnull).close()
    socket.socket().close()
    subprocess.run(["true"])
"""
exec(compile(CONTROL, "control.py", "exec"), {"__name__": "transformers_modules.control"})
found["control"] = seen
print(json.dumps(found))
'''


def make_folder(folder: Path) -> torch.Tensor:
    """Every head with its processor, and tokens; returns these."""
    classes = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    classifier = randomize_(ImageGPTForImageClassification(tiny_config(**classes)).eval(), 3)
    causal, masked = tiny_causal(torch.float32), tiny_masked(torch.float32)
    models = {"causal": causal, "masked": masked, "classifier": classifier, "backbone": causal.transformer}
    palette = np.random.default_rng(0).integers(0, 256, (10, 3))
    processor = IGPTImageProcessor(size={"height": 3, "width": 4}, palette=palette)
    for name, model in models.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    tokens = random_tokens(causal.config)
    np.save(folder / "tokens.npy", tokens.numpy())
    return tokens


def run_without_the_package(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    return folder, make_folder(folder)


@pytest.fixture(scope="module")
def loaded(saved):
    done = run_without_the_package(saved[0], LOADING, ",".join(HEADS), ",".join(AUTO_CLASSES))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("head", HEADS)
def test_a_folder_carries_the_whole_map_and_every_file_that_it_needs(saved, head):
    folder = saved[0] / head
    config = json.loads((folder / "config.json").read_text())
    assert (config["auto_map"], config["custom_pipelines"]) == (AUTO_MAP, CUSTOM_PIPELINES)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["auto_map"] == {"AutoImageProcessor": "image_processing_igpt.IGPTImageProcessor"}
    files = sorted(folder.glob("*.py"))
    entries = {f"{name}_igpt.py" for name in ("configuration", "modeling", "image_processing", "pipeline")}
    assert entries <= {path.name for path in files}
    for path in files:
        assert path.read_bytes() == (SOURCE / path.name).read_bytes()


@pytest.mark.parametrize("head", HEADS)
def test_config_and_processor_come_from_the_folder(loaded, head):
    assert loaded[head]["config"].startswith("transformers_modules.")
    assert loaded[head]["processor"].startswith("transformers_modules.")


@pytest.mark.parametrize("name", AUTO_CLASSES)
@pytest.mark.parametrize("head", HEADS)
def test_every_auto_class_loads_every_head_without_the_package(saved, loaded, head, name):
    folder, tokens = saved
    result = loaded[head][name]
    if (head, name) in REFUSED:
        assert "is_causal" in result["error"]
        return
    assert result["module"].startswith("transformers_modules.")
    assert f"modeling_igpt.{result['class']}" == AUTO_MAP[name]
    own = hf_igpt.ImageGPTModel.from_pretrained(folder / head)
    expected = own.eval().pooled_features(tokens)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    torch.testing.assert_close(torch.tensor(result["features"]), expected.detach(), atol=1e-5, rtol=1e-5)


def test_code_of_a_checkpoint_imports_what_is_listed(loaded):
    imports = loaded["seen"]["imports"]
    siblings = {path.stem for path in SOURCE.glob("*_igpt*.py")}
    assert {importer for importer, _, _ in imports} >= {"modeling_igpt", "image_processing_igpt", "pipeline_igpt"}
    for importer, name, level in imports:
        assert name in siblings if level == 1 else (level == 0 and name.split(".")[0] in ALLOWED), (importer, name)
    assert ["control", "colorsys", 0] in loaded["control"]["imports"]


def test_code_of_a_checkpoint_reads_no_variables_and_calls_no_network_or_process(loaded):
    assert (loaded["seen"]["variables"], loaded["seen"]["system"]) == ([], [])
    assert {"FIRST", "SECOND", "THIRD", "all"} <= set(loaded["control"]["variables"])
    assert {"socket.__new__", "subprocess.Popen"} <= set(loaded["control"]["system"])


def test_code_of_a_checkpoint_opens_its_folder_and_the_libraries_only(saved, loaded):
    folder = str(saved[0])
    libraries = tuple({sys.prefix, sys.base_prefix, *map(os.path.realpath, (sys.prefix, sys.base_prefix))})
    opened = loaded["seen"]["files"]
    assert any(path.endswith("causal/config.json") for path, _ in opened)
    for path, mode in opened:
        assert path.startswith((folder, *libraries)) or path.startswith("/proc/"), path  # libraries count cores
        assert mode in ("r", "rb") or path.startswith(f"{folder}/home") or path.startswith(libraries), (path, mode)
    assert any(path == os.devnull for path, _ in loaded["control"]["files"])


PIPELINES = (
    LOADING.split("folder, heads")[0]
    + """
from PIL import Image
from transformers import pipeline

folder, heads, tasks = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")
images = [Image.fromarray(pixels) for pixels in np.load(f"{folder}/pixels.npy")]
hole = np.load(f"{folder}/hole.npy")
found = {}
for head in heads:
    found[head] = {}
    for task in tasks:
        if task == "image-completion" and head not in ("causal", "masked"):
            continue
        made = pipeline(task, model=f"{folder}/{head}", trust_remote_code=True)
        if task == "image-completion":
            options = {"mask": hole, "num_steps": 2} if head == "masked" else {"rows_kept": 1}
            drawn = made(images, num_images=2, seed=3, batch_size=2, top_k=8, **options)
            answer = [[np.asarray(image).tolist() for image in row] for row in drawn]
        elif task == "image-classification":
            answer = made(images)
        else:
            answer = [made(images, pool=True), made(images, pool=True, layer=1)]
        modules = [type(part).__module__ for part in (made, made.model, made.image_processor)]
        found[head][task] = {"modules": modules, "answer": answer}
made.save_pretrained(f"{folder}/from-a-pipeline")
assert "hf_igpt" not in sys.modules
print(json.dumps(found))
"""
)
TASKS = [*CUSTOM_PIPELINES, "image-classification"]


@pytest.fixture(scope="module")
def answers(saved):
    folder = saved[0]
    np.save(folder / "pixels.npy", np.random.default_rng(1).integers(0, 256, (3, 6, 8, 3), dtype=np.uint8))
    hole = np.zeros((3, 4), dtype=bool)
    hole[1, 1:3] = True
    np.save(folder / "hole.npy", hole)
    done = run_without_the_package(folder, PIPELINES, ",".join(HEADS), ",".join(TASKS))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def loaded_here(folder: Path, head: str) -> tuple:
    """Model, image processor and images, with the package."""
    classes = {
        "causal": hf_igpt.ImageGPTForCausalImageModeling,
        "masked": hf_igpt.ImageGPTForMaskedImageModeling,
        "classifier": ImageGPTForImageClassification,
        "backbone": hf_igpt.ImageGPTModel,
    }
    model = classes[head].from_pretrained(folder / head)
    return model, IGPTImageProcessor.from_pretrained(folder / head), list(np.load(folder / "pixels.npy"))


@pytest.mark.parametrize("head", ["causal", "masked"])
def test_completions_without_the_package(saved, answers, head):
    folder, answer = saved[0], answers[head]["image-completion"]
    assert all(module.startswith("transformers_modules.") for module in answer["modules"])
    model, processor, images = loaded_here(folder, head)
    options = {"mask": folder / "hole.npy", "num_steps": 2} if head == "masked" else {"rows_kept": 1}
    completer = ImageCompletionPipeline(model, image_processor=processor)
    expected = completer(images, num_images=2, seed=3, top_k=8, **options)
    assert expected[0][0].tobytes() != expected[0][1].tobytes()
    found = np.array(answer["answer"], dtype=np.uint8)
    np.testing.assert_array_equal(found, np.array([[np.asarray(image) for image in row] for row in expected]))


@pytest.mark.parametrize("task", ["igpt-feature-extraction", "image-feature-extraction"])
@pytest.mark.parametrize("head", HEADS)
def test_features_without_the_package(saved, answers, head, task):
    """Under the name of transformers' own task too: the line is the same with and without the package."""
    answer = answers[head][task]
    assert all(module.startswith("transformers_modules.") for module in answer["modules"])
    model, processor, images = loaded_here(saved[0], head)
    tokens = processor(images, return_tensors="pt").input_ids
    for found, layer in zip(answer["answer"], (None, 1), strict=True):
        expected = model.pooled_features(tokens, layer).detach()
        assert (expected[0] - expected[1]).abs().max() > 0.01
        torch.testing.assert_close(torch.tensor(found)[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_classes_without_the_package(saved, answers):
    answer = answers["classifier"]["image-classification"]
    pipeline_module, *parts = answer["modules"]
    assert pipeline_module == "transformers.pipelines.image_classification"
    assert all(module.startswith("transformers_modules.") for module in parts)
    model, processor, images = loaded_here(saved[0], "classifier")
    logits = model(input_ids=processor(images, return_tensors="pt").input_ids).logits.detach()
    for found, row in zip(answer["answer"], logits, strict=True):
        assert found[0]["label"] == "abc"[row.argmax()]
        scores = {entry["label"]: entry["score"] for entry in found}
        torch.testing.assert_close(torch.tensor([scores[label] for label in "abc"]), row.softmax(0), atol=1e-5, rtol=0)


def test_a_pipeline_saved_without_the_package_is_a_whole_folder(saved, answers):
    folder = saved[0]
    config = json.loads((folder / "from-a-pipeline/config.json").read_text())
    assert (config["auto_map"], config["custom_pipelines"]) == (AUTO_MAP, CUSTOM_PIPELINES)
    names = {path.name for path in (folder / "causal").iterdir()} - {"generation_config.json"}
    assert names <= {path.name for path in (folder / "from-a-pipeline").iterdir()}


SAVED_AGAIN = (
    LOADING.split("folder, heads")[0]
    + """
from transformers import AutoModelForCausalLM
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(f"{folder}/causal", trust_remote_code=True)
model.save_pretrained(f"{folder}/again")
AutoImageProcessor.from_pretrained(f"{folder}/causal", trust_remote_code=True).save_pretrained(f"{folder}/again")
"""
)


def test_what_is_saved_without_the_package_is_what_was_loaded(saved):
    folder = saved[0]
    done = run_without_the_package(folder, SAVED_AGAIN)
    assert done.returncode == 0, done.stderr
    for path in (folder / "causal").iterdir():
        assert path.read_bytes() == (folder / "again" / path.name).read_bytes(), path.name


UNTRUSTED = (
    LOADING.split("folder, heads")[0]
    + """
opened = []
sys.addaudithook(lambda event, arguments: opened.append(arguments[0]) if event in ("exec", "compile") else None)
for load in (AutoConfig, AutoImageProcessor, transformers.AutoModel):
    try:
        load.from_pretrained(f"{sys.argv[1]}/causal", trust_remote_code=False)
        raise SystemExit("loaded")
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
for task in ("image-completion", "image-feature-extraction", "igpt-feature-extraction"):
    try:
        transformers.pipeline(task, model=f"{sys.argv[1]}/causal", trust_remote_code=False)
        raise SystemExit("loaded")
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
assert not [name for name in sys.modules if name.startswith("transformers_modules.")]
"""
)


def test_nothing_is_executed_without_trust(saved):
    done = run_without_the_package(saved[0], UNTRUSTED)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_with_the_package_its_own_code_is_used(saved):
    from transformers import AutoModel

    for trusted in (None, True, False):
        model = AutoModel.from_pretrained(saved[0] / "causal", trust_remote_code=trusted)
        assert type(model) is hf_igpt.ImageGPTModel


OTHER_KINDS = (
    LOADING.split("folder, heads")[0]
    + """
from transformers import AutoModelForCausalLM

folder, found = sys.argv[1], {}
for kind in ("rgb", "vqvae"):
    processor = AutoImageProcessor.from_pretrained(f"{folder}/{kind}", trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/{kind}", trust_remote_code=True).eval()
    tokens = processor(np.load(f"{folder}/images.npy"), return_tensors="pt").input_ids
    parts = [processor, processor.vqvae, model]
    found[kind] = {
        "modules": [type(part).__module__ for part in parts if part is not None],
        "tokens": tokens.tolist(),
        "images": processor.decode_pixels(tokens).tolist(),
        "hash": processor.token_hash,
        "loss": model(labels=tokens).loss.item(),
    }
    processor.save_pretrained(f"{folder}/{kind}-again")
assert "hf_igpt" not in sys.modules
print(json.dumps(found))
"""
)


def test_other_kinds_of_tokens_without_the_package(tmp_path):
    """The VQ-VAE by the image processor's code: whoever trusts a checkpoint trusts it whole."""
    torch.manual_seed(0)
    sizes = {"downsampling": 2, "codebook_size": 13, "code_size": 4, "hidden_size": 8, "residual_size": 4}
    vqvae = ImageGPTVQVAEModel(ImageGPTVQVAEConfig(**sizes))
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    processors, losses = {}, {}
    for kind, own in (("rgb", None), ("vqvae", vqvae)):
        processor = IGPTImageProcessor(size={"height": 6, "width": 8}, token_kind=kind, vqvae=own)
        layout = {"vocab_size": processor.num_values + 1, "num_channels": processor.num_channels}
        model = tiny_causal(torch.float32, token_kind=kind, image_size=list(processor.grid), **layout)
        for part in (model, processor):
            part.save_pretrained(tmp_path / kind)
        processors[kind] = processor
        losses[kind] = model(labels=processor(images, return_tensors="pt").input_ids).loss.item()
    done = run_without_the_package(tmp_path, OTHER_KINDS)
    assert done.returncode == 0, done.stderr
    for kind, found in json.loads(done.stdout.splitlines()[-1]).items():
        processor = processors[kind]
        tokens = processor(images).input_ids
        assert len(found["modules"]) == (3 if kind == "vqvae" else 2)
        assert all(module.startswith("transformers_modules.") for module in found["modules"]), found["modules"]
        assert found["tokens"] == tokens.tolist() and len(np.unique(tokens)) > 3
        assert found["images"] == processor.decode_pixels(tokens).tolist()
        assert found["hash"] == processor.token_hash
        assert found["loss"] == pytest.approx(losses[kind], abs=1e-5)
        # Saved there, it is whole here.
        assert IGPTImageProcessor.from_pretrained(tmp_path / f"{kind}-again").token_hash == processor.token_hash
        for path in (tmp_path / kind).rglob("*.py"):
            assert path.read_bytes() == (SOURCE / path.name).read_bytes()
