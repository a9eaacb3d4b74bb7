"""Checkpoint folders made by others: whatever is in them is data, checked before it is used, and never code."""

import ast
import contextlib
import json
import pickle
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_models import edit_config, native_model
from safetensors.torch import load_file, save_file
from test_checkpoint import no_allocation_above
from test_configuration import FIELDS, JUNK
from test_hub_files import imports_of
from tiny_models import randomize_, tiny_causal, tiny_config, tiny_masked
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
)

import hf_igpt
from hf_igpt import (
    AutoModelForCausalImageModeling,
    IGPTImageProcessor,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTForMaskedImageModeling,
    ImageGPTModel,
    ImageGPTVQVAEConfig,
    ImageGPTVQVAEModel,
)
from hf_igpt.commands import convert_checkpoint, evaluate, finetune, probe, push_to_hub, sample
from hf_igpt.commands.checkpoints import load_checkpoint
from hf_igpt.hub.conversion import convert
from hf_igpt.hub.releases import load_any_head


SOURCE = Path(hf_igpt.__file__).parent
WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
# What loads the folder of a head; a pretrained one is also where a classifier starts from.
LOADERS = {
    "backbone": (ImageGPTModel, AutoModel, ImageGPTForCausalImageModeling),
    "causal": (
        ImageGPTForCausalImageModeling,
        AutoModelForCausalLM,
        AutoModelForCausalImageModeling,
        AutoModel,
        ImageGPTForImageClassification,
    ),
    "masked": (ImageGPTForMaskedImageModeling, AutoModelForMaskedImageModeling, AutoModelForImageClassification),
    "classifier": (ImageGPTForImageClassification, AutoModelForImageClassification, AutoModel),
    "native": (ImageGPTForCausalImageModeling, ImageGPTModel),
}
PACKAGE_LOADERS = (load_checkpoint, load_any_head, convert)


def models() -> dict[str, transformers.PreTrainedModel]:
    classifier = ImageGPTForImageClassification(tiny_config(num_labels=3))
    return {
        "backbone": randomize_(ImageGPTModel(tiny_config())),
        "causal": tiny_causal(torch.float32),
        "masked": tiny_masked(torch.float32),
        "classifier": randomize_(classifier),
        "native": native_model(),
    }


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    for name, model in models().items():
        model.save_pretrained(folder / name)
        height, width = (4, 4) if name == "native" else (3, 4)
        palette = np.random.default_rng(0).integers(0, 256, (10, 3))
        IGPTImageProcessor(size={"height": height, "width": width}, palette=palette).save_pretrained(folder / name)
    return folder


@pytest.fixture
def folder_of(originals, tmp_path):
    """A copy of a head's folder to be damaged, without the code."""

    def copied(head: str) -> Path:
        shutil.copytree(originals / head, tmp_path / head, ignore=shutil.ignore_patterns("*.py"))
        return tmp_path / head

    return copied


def edit_weights(folder: Path, change) -> None:
    """`change` gets the tensors by name, those of the backbone without a prefix, and changes them in place."""
    tensors = load_file(folder / WEIGHTS)
    prefix = "transformer." if any(name.startswith("transformer.") for name in tensors) else ""
    plain = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    change(plain)
    heads = ("lm_head.weight", "score.weight")
    named = {name if name in heads else prefix + name: tensor.contiguous() for name, tensor in plain.items()}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})


def refused(load, folder: Path, *parts: str) -> str:
    """The message of a ValueError that names the folder and the parts."""
    with pytest.raises(ValueError) as error:
        load(str(folder))
    message = str(error.value)
    for part in (str(folder), *parts):
        assert part in message
    return message


# Tensors


def rename(tensors: dict, old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


def replace(tensors: dict, name: str, change) -> None:
    tensors[name] = change(tensors[name])


BLOCK = "h.1.attn.c_attn.weight"
DAMAGES = {
    "a missing block": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("h.1.")],
        ["num_hidden_layers=2, but the weights have 1"],
    ),
    "a missing matrix": (lambda t: t.pop(BLOCK), ["missing: h.1.attn.c_attn.weight"]),
    "a missing norm": (lambda t: t.pop("h.0.ln_2.weight"), ["missing: h.0.ln_2.weight"]),
    "two missing": (
        lambda t: (t.pop(BLOCK), t.pop("h.0.mlp.c_proj.weight")),
        ["missing: h.0.mlp.c_proj.weight, h.1.attn.c_attn.weight"],
    ),
    "another tensor": (lambda t: t.update({"h.0.attn.extra": torch.ones(3)}), ["unknown: h.0.attn.extra"]),
    "another name": (
        lambda t: rename(t, BLOCK, "h.1.attn.qkv.weight"),
        ["missing: h.1.attn.c_attn.weight", "unknown: h.1.attn.qkv.weight"],
    ),
    "another shape": (
        lambda t: replace(t, BLOCK, lambda x: x[:, :-1]),
        ["of another shape: h.1.attn.c_attn.weight ["],
    ),
    "another width": (
        lambda t: replace(t, "ln_f.weight", lambda x: x[:-1]),
        ["hidden_size=24, but the weights have 23"],
    ),
    "a number": (
        lambda t: replace(t, "ln_f.weight", lambda x: x[0]),
        ["hidden_size=24, but the weights have none"],
    ),
    "a block of another number": (
        lambda t: [rename(t, name, name.replace("h.1.", "h.7.")) for name in list(t) if name.startswith("h.1.")],
        ["missing: h.1.attn.c_attn.", "unknown: h.7.attn.c_attn."],
    ),
    "integers": (
        lambda t: replace(t, BLOCK, lambda x: (9 * x).to(torch.int8)),
        ["type: h.1.attn.c_attn.weight torch.int8"],
    ),
    "half as precise": (
        lambda t: replace(t, BLOCK, lambda x: x.half()),
        ["type: h.1.attn.c_attn.weight torch.float16"],
    ),
    "8 bits": (
        lambda t: [replace(t, name, lambda x: x.to(torch.float8_e4m3fn)) for name in list(t)],
        ["type: h.0.attn.c_attn", "torch.float8_e4m3fn"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("head", LOADERS)
def test_tensors_that_are_not_those_of_the_config_are_listed(folder_of, head, damage):
    """Never a layer drawn at random, left out or converted, with a line in the log."""
    folder = folder_of(head)
    change, parts = DAMAGES[damage]
    edit_weights(folder, change)
    if head == "native" and damage == "another shape":
        parts = ["of another shape: h.1.attn.c_attn.weight [71, 24] and not [72, 24]"]
    for loader in LOADERS[head]:
        refused(loader.from_pretrained, folder, *parts)


@pytest.mark.parametrize("damage", ["a missing matrix", "another tensor", "another shape", "integers"])
def test_the_packages_own_loaders_refuse_them_too(folder_of, damage):
    folder = folder_of("causal")
    edit_weights(folder, DAMAGES[damage][0])
    for load in PACKAGE_LOADERS:
        refused(load, folder, *DAMAGES[damage][1])


@pytest.mark.parametrize(("head", "name"), [("causal", "lm_head"), ("masked", "lm_head"), ("classifier", "score")])
def test_a_head_that_was_saved_must_be_there(folder_of, head, name):
    folder = folder_of(head)
    edit_weights(folder, lambda tensors: tensors.pop(f"{name}.weight"))
    for loader in LOADERS[head]:
        refused(loader.from_pretrained, folder, f"missing: {name}.weight")
    refused(load_any_head, folder, f"missing: {name}.weight")


def test_a_head_that_was_not_saved_is_unknown(folder_of):
    folder = folder_of("causal")
    edit_weights(folder, lambda tensors: tensors.update({"score.weight": torch.zeros(3, 24)}))
    refused(ImageGPTForCausalImageModeling.from_pretrained, folder, "unknown: score.weight")


def test_without_the_name_of_a_class_the_weights_must_be_those_of_the_one_that_loads(folder_of):
    folder = folder_of("causal")
    edit_config(folder, architectures=None)
    loaded = ImageGPTForCausalImageModeling.from_pretrained(folder)
    assert loaded.lm_head.weight.any()
    edit_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
    refused(ImageGPTForCausalImageModeling.from_pretrained, folder, "missing: lm_head.weight")


def test_one_tensor_under_two_names(folder_of):
    folder = folder_of("causal")
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {"wte.weight": torch.zeros(11, 24)}, folder / WEIGHTS)
    refused(ImageGPTForCausalImageModeling.from_pretrained, folder, "unknown: transformer.wte.weight")


def test_a_model_without_head_predicts_nothing_but_has_features(folder_of):
    folder = folder_of("backbone")
    refused(load_checkpoint, folder, "was saved without lm_head.weight")
    model, _, _ = load_checkpoint(str(folder), needs_head=False)
    saved = load_file(folder / WEIGHTS)
    assert torch.equal(model.transformer.wte.weight, saved["wte.weight"])


@pytest.mark.parametrize("head", ["causal", "masked", "classifier", "backbone"])
def test_expected_names_and_shapes_are_those_of_the_models(head):
    """The list that files are compared with, against the models themselves."""
    from hf_igpt.checkpoint_igpt import refuse_other_tensors

    for fields in ({}, {"use_bias": True}, {"generative_loss_weight": 0.0}, {"num_labels": 7}, {"num_channels": 3}):
        model_class = type(models()[head])
        model = model_class(tiny_config(architectures=[model_class.__name__], is_causal=head != "masked", **fields))
        refuse_other_tensors("x", model.config, model.state_dict(), model_class.__name__)
        for name in model.state_dict():
            others = {other: tensor for other, tensor in model.state_dict().items() if other != name}
            with pytest.raises(ValueError, match=f"missing: {name.removeprefix('transformer.')}"):
                refuse_other_tensors("x", model.config, others, model_class.__name__)


def test_few_numbers_spread_over_a_large_tensor_take_no_memory(folder_of):
    """A pickle of some kilobytes may claim any shape by stride 0; config and weights then agree."""
    folder = folder_of("causal")
    side = 2048
    edit_config(folder, image_size=side)
    tensors = load_file(folder / WEIGHTS)
    tensors["transformer.wpe.weight"] = torch.zeros(1, 24).expand(side * side, 24)
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert (folder / "pytorch_model.bin").stat().st_size < 1 << 17
    with no_allocation_above(1 << 20):
        refused(ImageGPTForCausalImageModeling.from_pretrained, folder, "without numbers of their own: wpe.weight")


def test_weights_that_are_not_where_they_are_looked_for_are_not_made_up(folder_of):
    """The files that transformers would take in place of those that were compared."""
    folder = folder_of("causal")
    load = ImageGPTForCausalImageModeling.from_pretrained
    tensors = load_file(folder / WEIGHTS)
    torch.save(
        {name: tensor for name, tensor in tensors.items() if "h.1.mlp" not in name}, folder / "pytorch_model.bin"
    )
    with pytest.raises(ValueError, match="missing: h.1.mlp.c_fc.weight"):
        load(folder, use_safetensors=False)
    assert load(folder, use_safetensors=True).lm_head.weight.any()
    shutil.copy(folder / WEIGHTS, folder / "shard-00000-model-00001-of-00001.safetensors")
    refused(load, folder, "shard-00000-model-00001-of-00001.safetensors")
    (folder / "shard-00000-model-00001-of-00001.safetensors").unlink()
    shutil.copy(folder / WEIGHTS, folder / "other.safetensors")
    edit_config(folder, transformers_weights="other.safetensors")
    refused(load, folder, "`transformers_weights`")


@pytest.mark.parametrize("quantization", [{"quant_method": "unheard-of"}, {"quant_method": 3}, {}, 3, ["x"]])
def test_a_quantization_does_not_switch_the_checks_off(folder_of, quantization):
    folder = folder_of("causal")
    edit_config(folder, quantization_config=quantization)
    refused(ImageGPTForCausalImageModeling.from_pretrained, folder, "`quantization_config`")
    edit_config(folder, quantization_config=None)
    edit_weights(folder, lambda tensors: tensors.pop(BLOCK))
    refused(ImageGPTForCausalImageModeling.from_pretrained, folder, f"missing: {BLOCK}")
    edit_config(folder, quantization_config={"quant_method": "bitnet"}, image_size=2048)
    with no_allocation_above(1 << 20):
        refused(ImageGPTForCausalImageModeling.from_pretrained, folder, "n_positions=4194304, but the weights have 12")


def test_whatever_was_not_read_is_an_error_where_files_can_not_be_compared(folder_of, monkeypatch):
    """As for quantized weights, whose names and shapes are those of their method."""
    monkeypatch.setattr("hf_igpt.modeling_igpt.is_quantized", lambda *_: True)
    folder = folder_of("causal")
    assert ImageGPTForImageClassification.from_pretrained(folder, num_labels=3).score.weight.shape == (3, 24)
    edit_weights(folder, lambda tensors: tensors.pop(BLOCK))
    refused(ImageGPTForCausalImageModeling.from_pretrained, folder, f"not in the checkpoint: transformer.{BLOCK}")


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04N.", b"\xff" * 100, b"\x10" + b"\0" * 7 + b'{"a": {}}'])
def test_a_file_that_holds_no_weights_is_named(folder_of, content):
    folder = folder_of("causal")
    (folder / WEIGHTS).write_bytes(content)
    refused(ImageGPTForCausalImageModeling.from_pretrained, folder, WEIGHTS)


# Numbers that are none


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("head", ["causal", "masked", "native"])
def test_weights_that_are_not_finite_are_refused_with_their_number(folder_of, head, value):
    folder = folder_of(head)
    edit_weights(folder, lambda tensors: tensors["h.1.mlp.c_proj.weight"].view(-1)[3:5].fill_(value))
    parts = ("2 of the ", "numbers in transformer.h.1.mlp.c_proj.weight are NaN or infinite")
    for load in PACKAGE_LOADERS if head != "native" else (load_checkpoint, convert):
        refused(load, folder, *parts)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (evaluate, ["--model"]),
        (sample, ["--num_completions", "0", "--model"]),
        (probe, ["--model"]),
        (finetune, ["--learning_rate", "0.1", "--model"]),
        (convert_checkpoint, ["--source"]),
        (push_to_hub, ["--dry_run", "--repo_id", "someone/name", "--model"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_command_that_takes_a_model_refuses_them(folder_of, tmp_path, monkeypatch, capsys, command, arguments):
    folder = folder_of("causal")
    edit_weights(folder, lambda tensors: tensors["lm_head.weight"][0].fill_(torch.nan))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as end:
        command.main([*arguments, str(folder)])
    assert end.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "24 of the 240 numbers in lm_head.weight are NaN or infinite" in last
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and path.is_file()] == []


# Pickles


class Payload:
    """Unpickled freely, it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


PICKLES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin", "palette.pkl")
opened: list[str] | None = None


def watch(event: str, arguments: tuple) -> None:
    if opened is not None and event == "open":
        opened.append(str(arguments[0]))


sys.addaudithook(watch)


@contextlib.contextmanager
def watched_opens():
    """Paths that are opened in the block."""
    global opened
    opened = []
    try:
        yield opened
    finally:
        opened = None


def plant(path: Path, marker: Path) -> None:
    """A pickle that torch.save wrote, or, for a .pkl, a bare one."""
    payload = {"transformer.wte.weight": Payload(marker)}
    path.write_bytes(pickle.dumps(payload)) if path.suffix == ".pkl" else torch.save(payload, path)


def test_pickles_beside_the_weights_are_not_opened(folder_of, tmp_path):
    marker = tmp_path / "marker"
    folder = folder_of("causal")
    for name in PICKLES:
        plant(folder / name, marker)
    with watched_opens() as seen:
        for load in (*PACKAGE_LOADERS, AutoModelForCausalLM.from_pretrained, IGPTImageProcessor.from_pretrained):
            load(str(folder))
    assert any(name.endswith(CONFIG) for name in seen)
    assert [name for name in seen if Path(name).name in PICKLES] == []
    assert not marker.exists()
    torch.load(folder / "training_args.bin", weights_only=False)
    assert marker.exists(), "the payload works"


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("head", ["causal", "native"])
def test_a_pickle_in_place_of_the_weights_is_not_run(folder_of, tmp_path, head, index):
    marker, folder = tmp_path / "marker", folder_of(head)
    (folder / WEIGHTS).unlink()
    plant(folder / "pytorch_model.bin", marker)
    if index:
        (folder / "pytorch_model.bin").rename(folder / "part.bin")
        content = {"metadata": {}, "weight_map": {"transformer.wte.weight": "part.bin"}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(content))
    loaders = [loader.from_pretrained for loader in LOADERS[head]]
    loaders += [load_checkpoint, convert] + [load_any_head] * (head == "causal")
    for load in loaders:
        message = refused(load, folder, ".bin is a pickle", "Take weights in safetensors")
        assert "trust" not in message
    assert not marker.exists()


@pytest.mark.parametrize("options", [{"use_safetensors": False}, {"use_safetensors": False, "weights_only": False}])
def test_a_pickle_beside_good_weights_is_not_run_on_request_either(folder_of, tmp_path, options):
    folder = folder_of("causal")
    plant(folder / "pytorch_model.bin", tmp_path / "marker")
    refused(lambda name: ImageGPTForCausalImageModeling.from_pretrained(name, **options), folder, "is a pickle")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"transformer.wte.weight": [1, 2]},
        {3: torch.ones(2)},
        [torch.ones(2)],
        {"transformer.wte.weight": torch.eye(3).to_sparse()},
    ],
    ids=["list", "number for a name", "no names", "sparse"],
)
def test_a_pickle_of_something_else_is_named(folder_of, content):
    folder = folder_of("causal")
    (folder / WEIGHTS).unlink()
    torch.save(content, folder / "pytorch_model.bin")
    refused(
        ImageGPTForCausalImageModeling.from_pretrained, folder, "pytorch_model.bin must hold dense tensors by name"
    )


# Modules that run or unpack what a file holds. One needs the name of an error.
RUNNERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "runpy", "shelve", "tarfile", "zipfile"}
RUNNING = {"__import__", "eval", "exec", "compile"}
UNPACKING = {"Unpickler", "unpack_archive", "unsafe_load", "full_load", "read_pickle", "extractall"}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_no_module_unpickles_unpacks_or_trusts_code(path):
    imported = {name.split(".")[0] for _, name, _ in imports_of(path)}
    assert imported & RUNNERS <= ({"pickle"} if path.name == "checkpoint_igpt.py" else set())
    for call in [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]:
        owner, _, name = ast.unparse(call.func).rpartition(".")
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert owner or name not in RUNNING
        assert name not in UNPACKING
        assert name != "import_module" or ast.unparse(call.args[0]).startswith(("f'hf_igpt.", "f'{__name__}."))
        for keyword, only in (("trust_remote_code", "False"), ("allow_pickle", "False"), ("weights_only", "True")):
            assert keywords.get(keyword, only) == only
        if name == "load" and owner in ("np", "numpy"):
            assert "allow_pickle" in keywords
        if name == "load" and owner in ("torch", "yaml", "pickle"):
            assert "weights_only" in keywords


# Configs


def timed_refusal_or(load, folder: Path):
    """What loads in under a second and without memory, or the error, which is a ValueError that names the folder."""
    start = time.process_time()
    try:
        with no_allocation_above(1 << 20):
            return load(folder), None
    except ValueError as error:
        assert str(folder) in str(error)
        return None, str(error)
    finally:
        assert time.process_time() - start < 1


MACHINERY = {
    "architectures": [3, [3], "ImageGPTModel", {}],
    "attn_implementation": [
        "evil/kernel",
        "kernels-community/flash-attn",
        "flash_attention_2",
        3,
        {"": "evil/kernel"},
    ],
    "_attn_implementation": ["evil/kernel", ["sdpa"]],
    "_attn_implementation_internal": ["evil/kernel"],
    "experts_implementation": ["evil/kernel"],
    "_experts_implementation": ["evil/kernel"],
    "fusion_config": [{"patch_embeddings": True}, 3],
    "transformers_weights": ["other.safetensors", "../x.safetensors", 3],
    "distributed_config": [{"tp_size": 2}, 3],
    "custom_pipelines": [3, ["x"]],
    "base_model_tp_plan": [3],
    "sub_configs": [{}],
    "attribute_map": [{}],
    "to_dict": [3],
    "validate_fields": [True],
    "grid": [3],
    "start_token_id": [3],
    "save_pretrained": ["x"],
    "_auto_class": ["AutoModel"],
    "rope_scaling": [3],
    "mlp_layer_types": [3],
    "mtp_layer_types": [3],
    "is_encoder_decoder": [True, 1],
    "output_hidden_states": ["yes", 1],
    "output_attentions": ["yes"],
    "return_dict": [3],
    "dtype": ["int8", "bool", "complex64", "float8_e4m3fn", "Tensor", ["float32"]],
    "id2label": [{}, {"1": "a"}, {"0": "a", "2": "b"}, {"9" * 5000: "a"}, {"-1": "a"}],
    "label2id": [{"a": "b"}, {"a": [1]}],
}
CASES = [(name, value) for name, values in MACHINERY.items() for value in values]


@pytest.mark.parametrize(("name", "value"), CASES, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("head", ["causal", "native"])
def test_a_field_that_reaches_for_the_machinery_is_refused_by_name(folder_of, head, name, value):
    """What transformers would read from a config to take other code, classes, files or methods."""
    folder = folder_of(head)
    edit_config(folder, **{name: value})
    loaders = [ImageGPTConfig.from_pretrained, LOADERS[head][0].from_pretrained]
    for load in loaders if head == "native" else [*loaders, AutoModel.from_pretrained]:
        loaded, error = timed_refusal_or(load, folder)
        assert loaded is None and f"`{name}`" in error, error


def test_fields_of_other_kinds_of_models_change_nothing(folder_of):
    folder = folder_of("causal")
    expected = ImageGPTForCausalImageModeling.from_pretrained(folder).state_dict()
    others = {"text_config": {"vocab_size": 3}, "decoder": {}, "text_encoder": 3, "tokenizer_class": "x", "note": [1]}
    edit_config(folder, attn_implementation="eager", **others)
    loaded = ImageGPTForCausalImageModeling.from_pretrained(folder)
    assert loaded.config._attn_implementation == "eager"
    assert loaded.config.get_text_config(decoder=True) is loaded.config
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name])
    assert loaded.generate(num_return_sequences=2).shape == (2, 13)


INHERITED = ["architectures", "output_attentions", "output_hidden_states", "return_dict", "label2id", "note"]
# What a field is compared with in the weights, or in another field.
COMPARED = {"image_size": "n_positions", "num_channels": "n_positions", "vocab_size": "bos_token_id"}
NESTED = st.recursive(JUNK, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
CONFIG_EDITS = st.dictionaries(st.sampled_from([*FIELDS, *INHERITED]), JUNK | NESTED, min_size=1, max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONFIG_EDITS)
def test_any_edit_of_a_config_is_refused_or_gives_the_model_that_was_saved(originals, tmp_path, edits):
    folder = tmp_path / "model"
    if not folder.exists():
        shutil.copytree(originals / "causal", folder, ignore=shutil.ignore_patterns("*.py"))
    saved = json.loads((originals / "causal" / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(saved | edits))
    loaded, error = timed_refusal_or(ImageGPTForCausalImageModeling.from_pretrained, folder)
    auto, auto_error = timed_refusal_or(AutoModelForCausalLM.from_pretrained, folder)
    assert (auto is None) == (loaded is None), (error, auto_error)
    if loaded is None:
        names = {name for edit in edits for name in (edit, ImageGPTConfig.attribute_map.get(edit), COMPARED.get(edit))}
        assert any(name in error for name in names - {None}), error
    else:
        for name, tensor in load_file(originals / "causal" / WEIGHTS).items():
            assert torch.equal(loaded.get_parameter(name), tensor)


@pytest.mark.parametrize("depth", [17, 300, 990])
def test_a_field_nested_too_deep(folder_of, depth):
    folder = folder_of("causal")
    value = "1"
    for _ in range(depth):
        value = f"[{value}]"
    (folder / CONFIG).write_text((folder / CONFIG).read_text().replace("{", f'{{"note": {value},', 1))
    _, error = timed_refusal_or(ImageGPTForCausalImageModeling.from_pretrained, folder)
    assert "`note` must not be nested deeper" in error or "recursion" in error


def test_a_file_too_large_for_a_config_is_not_read(folder_of):
    folder = folder_of("causal")
    for name, load in ((CONFIG, ImageGPTConfig.from_pretrained), (PROCESSOR, IGPTImageProcessor.from_pretrained)):
        with open(folder / name, "ab") as file:
            file.truncate(1 << 32)
        _, error = timed_refusal_or(load, folder)
        assert f"{name} must have at most" in error


# Palettes

BAD_PROCESSORS = {
    "palette": [
        [[1, 2, 3]], [[1, 2], [3, 4]], [[1, 2, 3], [4, 5]], [[[1, 2, 3]] * 3], [1, 2, 3], [], {}, "red", 7, True,
        [[1, 2, 256]] * 3, [[1, 2, -0.001]] * 3, [[1, 2, float("nan")]] * 3, [[1, 2, float("inf")]] * 3,
        [["1", "2", "3"]] * 3, [[True, False, True]] * 3, [[None, 1, 2]] * 3, [[10**400, 1, 2]] * 3,
        [[1, 2, 3]] * 65536,
    ],
    "size": [0, -1, 10**30, 3.0, "32", [1, 2, 3], {"height": 10**9, "width": 1}, {"height": 4}, {"shortest_edge": 4}],
    "crop_size": [4, -1],
    "do_resize": ["yes", 1, None],
    "do_center_crop": ["no", []],
    "resample": [99, "2", 2.0, [2], None],
    "clusters": [[[0, 0, 0]] * 3],
    "palettes": [[[1, 2, 3]] * 3],
}  # fmt: skip
BAD_FIELDS = [(name, value) for name, values in BAD_PROCESSORS.items() for value in values]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=lambda value: str(value)[:30])
def test_a_bad_field_of_an_image_processor_is_named_with_its_folder(folder_of, name, value):
    folder = folder_of("causal")
    edit_processor(folder, **{name: value})
    loaded, error = timed_refusal_or(IGPTImageProcessor.from_pretrained, folder)
    assert loaded is None and name in error
    refused(load_checkpoint, folder, name)


def edit_processor(folder: Path, **fields) -> None:
    path = folder / PROCESSOR
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


NUMBERS = st.integers(-2, 300) | st.floats(-1, 256) | st.floats() | JUNK
ROWS = st.lists(st.lists(NUMBERS, min_size=3, max_size=3) | JUNK, min_size=2, max_size=4)
GOOD_ROWS = st.lists(st.lists(st.floats(0, 255) | st.integers(0, 255), min_size=3, max_size=3), min_size=2, max_size=4)
PROCESSOR_EDITS = st.fixed_dictionaries(
    {},
    optional={
        "palette": GOOD_ROWS | ROWS | JUNK,
        "size": st.integers(1, 40) | JUNK,
        "resample": st.integers(0, 5) | JUNK,
        "do_resize": JUNK,
        "crop_size": JUNK,
        "auto_map": JUNK,
        "image_processor_type": JUNK,
    },
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PROCESSOR_EDITS)
def test_any_edit_of_an_image_processor_is_refused_by_name_or_kept_to_the_last_bit(originals, tmp_path, edits):
    saved = json.loads((originals / "causal" / PROCESSOR).read_text())
    (tmp_path / PROCESSOR).write_text(json.dumps(saved | edits))
    loaded, error = timed_refusal_or(IGPTImageProcessor.from_pretrained, tmp_path)
    if loaded is None:
        assert any(f"`{name}`" in error for name in edits), error
        return
    palette = edits.get("palette", saved["palette"])
    if palette is None:
        assert loaded.palette is None
    else:
        np.testing.assert_array_equal(loaded.palette, np.array(palette, dtype=np.float64))
    assert loaded.resample == edits.get("resample", saved["resample"])
    loaded.save_pretrained(tmp_path)
    assert IGPTImageProcessor.from_pretrained(tmp_path).to_dict() == loaded.to_dict()


NO_PROCESSORS = {
    "list": b"[1]", "text": b'"x"', "null": b"null", "number": b"3", "empty": b"", "cut": b'{"size": 3,',
    "not UTF-8": b'\xff\xfe{"size": 3}', "deep list": b"[" * 100_000 + b"]" * 100_000,
    "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "long number": b'{"size": ' + b"9" * 5000 + b"}",
}  # fmt: skip


@pytest.mark.parametrize("content", NO_PROCESSORS.values(), ids=NO_PROCESSORS)
@pytest.mark.parametrize("name", [PROCESSOR, "processor_config.json"])
def test_a_file_that_is_no_image_processor_is_refused_with_its_folder(folder_of, name, content):
    folder = folder_of("causal")
    if name != PROCESSOR and content in (b"[1]", b'"x"'):
        return  # transformers finds no image processor in these and takes the other file
    (folder / name).write_bytes(content)
    start = time.process_time()
    for load in (IGPTImageProcessor.from_pretrained, load_checkpoint):
        with pytest.raises((OSError, ValueError)) as error:
            load(str(folder))
        assert str(folder) in str(error.value)
    assert time.process_time() - start < 1


# VQ-VAEs


@pytest.fixture(scope="module")
def saved_codes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes")
    torch.manual_seed(0)
    sizes = {"downsampling": 2, "codebook_size": 5, "code_size": 3, "hidden_size": 4, "num_residual_blocks": 0}
    vqvae = ImageGPTVQVAEModel(ImageGPTVQVAEConfig(**sizes))
    IGPTImageProcessor(size=4, token_kind="vqvae", vqvae=vqvae).save_pretrained(folder)
    return folder


@pytest.fixture
def codes_folder(saved_codes, tmp_path):
    return shutil.copytree(saved_codes, tmp_path / "codes", ignore=shutil.ignore_patterns("*.py"))


VQVAE_MACHINERY = MACHINERY | {
    "dtype": [*MACHINERY["dtype"], "nonsense"],
    "torch_dtype": ["nonsense", 3],
    "num_labels": [3_000_000, 10**9, 0, "3"],
    "quantization_config": [{"quant_method": "bitsandbytes", "load_in_8bit": True}, {}, 3],
    "layer_types": [3],
    "grid_of": [3],
    "codebook_size": [10**9],
}
# Two are names of an Image GPT only.
VQVAE_CASES = [
    (name, value)
    for name, values in VQVAE_MACHINERY.items()
    if name not in ("grid", "start_token_id")
    for value in values
]


@pytest.mark.parametrize(("name", "value"), VQVAE_CASES, ids=lambda value: str(value)[:30])
def test_the_config_of_a_vqvae_is_no_way_round(codes_folder, name, value):
    inner = codes_folder / "vqvae"
    edit_config(inner, **{name: value})
    for load in (
        ImageGPTVQVAEConfig.from_pretrained,
        ImageGPTVQVAEModel.from_pretrained,
        AutoModel.from_pretrained,
        lambda folder: IGPTImageProcessor.from_pretrained(folder.parent),
    ):
        loaded, error = timed_refusal_or(load, inner)
        assert loaded is None and f"`{name}`" in error and error.startswith(f"{inner}: "), error


def test_an_adapter_beside_a_vqvae_does_not_take_its_place(codes_folder, tmp_path, monkeypatch):
    """With peft installed transformers would load another folder, or one of the Hub."""
    monkeypatch.setattr("transformers.integrations.peft.is_peft_available", lambda: True)
    inner = codes_folder / "vqvae"
    shutil.copytree(inner, tmp_path / "other")
    (inner / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "other")}))
    with watched_opens() as seen:
        refused(ImageGPTVQVAEModel.from_pretrained, inner, "adapter_config.json")
        refused(IGPTImageProcessor.from_pretrained, codes_folder, f"{inner} has an adapter_config.json")
    assert seen and not [path for path in seen if path.startswith(str(tmp_path / "other"))]


@pytest.mark.parametrize("name", ["quantizer.codebook", "quantizer.ema_sums", "encoder.project.weight"])
def test_a_vqvae_with_numbers_that_are_none_is_refused(codes_folder, name):
    inner = codes_folder / "vqvae"
    edit_weights(inner, lambda tensors: tensors[name].view(-1)[:2].fill_(torch.nan))
    for load in (ImageGPTVQVAEModel.from_pretrained, AutoModel.from_pretrained):
        refused(load, inner, f"2 of the {load_file(inner / WEIGHTS)[name].numel()} numbers in {name} are NaN")
    refused(IGPTImageProcessor.from_pretrained, codes_folder, f"{inner}: 2 of the ")


def test_a_vqvae_for_new_tokens_is_compared_with_its_manifest(codes_folder):
    from hf_igpt.data.options import fixed_processor
    from hf_igpt.storage import staged_folder

    size, vqvae = {"height": 4, "width": 4}, codes_folder / "listed"
    with staged_folder(vqvae) as staged:
        shutil.copytree(codes_folder / "vqvae", staged, dirs_exist_ok=True)
    expected = fixed_processor("vqvae", size, vqvae=str(codes_folder / "vqvae")).token_hash
    assert fixed_processor("vqvae", size, vqvae=str(vqvae)).token_hash == expected
    edit_weights(vqvae, lambda tensors: tensors["quantizer.codebook"].add_(1))
    refused(lambda folder: fixed_processor("vqvae", size, vqvae=folder), vqvae, "has changed since it was written")


# Fields that name code


def test_only_the_caller_can_ask_for_a_kernel(folder_of, monkeypatch):
    """Where `kernels` is installed, the name of one would be fetched and run when the model is built."""
    asked = []

    def fetched(name, *args, **kwargs):
        asked.append(name)
        raise ImportError("told to fail")

    monkeypatch.setattr(transformers.modeling_utils, "lazy_import_flash_attention", fetched)
    monkeypatch.setattr(transformers.modeling_utils, "is_kernels_available", lambda *_: True)
    folder = folder_of("causal")
    names = ("evil/kernel", "kernels-community/flash-attn2", "evil/kernel@main:f", "flash_attention_2", "paged|evil/k")
    for name in names:
        for field in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
            edit_config(
                folder, attn_implementation=None, _attn_implementation=None, _attn_implementation_internal=None
            )
            edit_config(folder, **{field: name})
            for load in (ImageGPTForCausalImageModeling.from_pretrained, AutoModel.from_pretrained, load_checkpoint):
                refused(load, folder, f"`{field}`", name)
    assert asked == []
    edit_config(folder, attn_implementation=None, _attn_implementation=None, _attn_implementation_internal=None)
    with pytest.raises(ImportError, match="told to fail"):
        ImageGPTForCausalImageModeling.from_pretrained(folder, attn_implementation="evil/kernel")
    assert asked == ["evil/kernel"]


# Names in an index


def shard(folder: Path, name: str) -> None:
    """The weights as one shard of that name, and an index that names it."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, place, metadata={"format": "pt"})
    write_index(folder, dict.fromkeys(tensors, name))


def write_index(folder: Path, weight_map) -> None:
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "a/../../secret.safetensors", "inner/secret.safetensors", "/"]
)
@pytest.mark.parametrize("head", ["causal", "native"])
def test_an_index_names_files_beside_it_only(folder_of, tmp_path, head, name):
    """The file is there and would load: only its name is wrong."""
    folder = folder_of(head)
    name = str(tmp_path / "secret.safetensors") if name == "/" else name
    (folder / "a").mkdir()
    shard(folder, name)
    assert len(load_file(folder / name)) > 10
    loaders = [loader.from_pretrained for loader in LOADERS[head]] + [load_checkpoint, convert]
    for load in loaders:
        with watched_opens() as seen:
            refused(load, folder, f"must name .safetensors files beside it, got {name!r}")
        assert [path for path in seen if "secret" in path] == []


@pytest.mark.parametrize("target", ["../secret.safetensors", "absolute", "/dev/zero"])
def test_a_shard_that_is_a_link_out_of_the_folder_is_not_read(folder_of, tmp_path, target):
    folder = folder_of("causal")
    shard(folder, "part-1.safetensors")
    assert ImageGPTForCausalImageModeling.from_pretrained(folder).lm_head.weight.any()
    (folder / "part-1.safetensors").rename(tmp_path / "secret.safetensors")
    (folder / "part-1.safetensors").symlink_to(tmp_path / "secret.safetensors" if target == "absolute" else target)
    for load in (ImageGPTForCausalImageModeling.from_pretrained, AutoModel.from_pretrained, load_checkpoint):
        refused(load, folder, "part-1.safetensors", "is a link to a file elsewhere")


def test_links_inside_the_folder_and_a_folder_that_is_a_link_are_read(folder_of, tmp_path):
    folder = folder_of("causal")
    shard(folder, "part-1.safetensors")
    (folder / "part-1.safetensors").rename(folder / "real.safetensors")
    (folder / "part-1.safetensors").symlink_to("real.safetensors")
    (tmp_path / "link").symlink_to(folder)
    assert ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "link").lm_head.weight.any()


BAD_INDEXES = [
    b"", b"[]", b"3", b"null", b"{}", b'{"metadata": {}}', b'{"metadata": {}, "weight_map": {}}',
    b'{"weight_map": {"a": "b.safetensors"}}', b'{"metadata": 3, "weight_map": {"a": "b.safetensors"}}',
    b'{"metadata": {}, "weight_map": ["b.safetensors"]}', b'{"metadata": {}, "weight_map": {"a": 3}}',
    b'{"metadata": {}, "weight_map": {"a": ["b"]}}', b'{"metadata": {}, "weight_map": {"a": "b.bin"}}',
    b'{"metadata": {}, "weight_map": {"a": ".."}}', b'{"metadata": {}, "weight_map": {"a": "..\\\\b.safetensors"}}',
    b'{"metadata": {}, "weight_map": {"a": "C:b.safetensors"}}', b"\xff\xfe", b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("content", BAD_INDEXES, ids=lambda content: content[:60].decode(errors="replace"))
def test_an_index_that_is_none_is_refused_by_name(folder_of, content):
    folder = folder_of("causal")
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_bytes(content)
    loaded, error = timed_refusal_or(ImageGPTForCausalImageModeling.from_pretrained, folder)
    assert loaded is None and f"{WEIGHTS}.index.json" in error


def test_a_shard_that_is_missing_is_named(folder_of):
    folder = folder_of("causal")
    shard(folder, "part-1.safetensors")
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(OSError, match="part-1.safetensors"):
        ImageGPTForCausalImageModeling.from_pretrained(folder)
