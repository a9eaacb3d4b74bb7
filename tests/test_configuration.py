"""The config: names, derived fields, presets, round trips, and the ways in which a config can be wrong."""

import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import tiny_config

from hf_igpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from hf_igpt.configuration_igpt import PRESETS


ALIASES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "activation_function": "hidden_act",
    "layer_norm_epsilon": "layer_norm_eps",
}
OVERRIDES = {
    "vocab_size": 257,
    "image_size": [3, 5],
    "num_channels": 3,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 100,
    "hidden_act": "gelu",
    "is_causal": False,
    "use_bias": True,
    "use_start_token": False,
    "pooler_layer": 2,
    "generative_loss_weight": 0.25,
    "initializer_range": 0.01,
    "layer_norm_eps": 1e-6,
    "embd_pdrop": 0.1,
    "resid_pdrop": 0.2,
    "attn_pdrop": 0.3,
    "scale_attn_weights": False,
    "scale_attn_by_inverse_layer_idx": True,
    "reorder_and_upcast_attn": True,
    "use_cache": False,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": 10,
    "rotary_base": 50.0,
    "token_kind": "rgb",
}


def test_defaults_are_igpt_s_at_32_pixels_with_512_colours():
    config = ImageGPTConfig()
    assert (config.n_positions, config.num_values, config.start_token_id, config.grid) == (1024, 512, 512, (32, 32))
    assert config.to_dict() == ImageGPTConfig.from_preset("igpt-s").to_dict()
    assert config.intermediate_size == 2048
    assert (config.embd_pdrop, config.resid_pdrop, config.attn_pdrop) == (0, 0, 0)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (512, None, None)


def test_every_field_survives_json(tmp_path):
    assert set(ImageGPTConfig.field_names()) - set(OVERRIDES) <= {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "tie_word_embeddings",
    }
    config = ImageGPTConfig(**OVERRIDES)
    config.save_pretrained(tmp_path)
    again = ImageGPTConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict() | {"_name_or_path": again.to_dict()["_name_or_path"]}
    assert {name: getattr(again, name) for name in OVERRIDES} == OVERRIDES
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "igpt"
    assert not set(ALIASES) & set(saved)


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_gpt2_names_mean_the_same_both_ways(alias, name):
    value = OVERRIDES[name]
    config = ImageGPTConfig(**{alias: value})
    assert getattr(config, name) == getattr(config, alias) == value
    assert config.to_dict() == ImageGPTConfig(**{name: value}).to_dict()
    other = {"hidden_act": "relu"}.get(name, ImageGPTConfig().to_dict()[name])
    setattr(config, alias, other)
    assert getattr(config, name) == other


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_two_names_of_one_field_may_not_contradict_each_other(alias, name):
    ImageGPTConfig(**{alias: OVERRIDES[name], name: OVERRIDES[name]})
    other = "relu" if name == "hidden_act" else OVERRIDES[name] * 2
    with pytest.raises(ValueError, match=f"`{alias}` and `{name}` are one field"):
        ImageGPTConfig(**{alias: other, name: OVERRIDES[name]})


@pytest.mark.parametrize("name", ["n_positions", "max_position_embeddings"])
def test_the_number_of_positions_follows_from_the_grid(name):
    assert getattr(ImageGPTConfig(image_size=[3, 4], num_channels=3), name) == 36
    assert ImageGPTConfig(**{name: 36}).image_size == 6
    assert ImageGPTConfig(image_size=[3, 4], num_channels=3, **{name: 36}).grid == (3, 4)
    with pytest.raises(ValueError, match="must equal height x width x num_channels = 36, got 35"):
        ImageGPTConfig(image_size=[3, 4], num_channels=3, **{name: 35})
    for arguments in ({name: 35}, {name: 48, "num_channels": 3}):
        with pytest.raises(ValueError, match="square number"):
            ImageGPTConfig(**arguments)


@pytest.mark.parametrize("name", ["n_embbd", "hidden_sizes", "num_hidden_layer", "image_sizes", "use_biases"])
def test_a_misspelt_name_is_refused_with_the_right_one(name):
    with pytest.raises(ValueError, match=f"Unknown config field '{name}'. Did you mean '"):
        ImageGPTConfig(**{name: 1})


def test_presets_take_overrides_under_either_name_and_refuse_what_they_do_not_know():
    assert ImageGPTConfig.from_preset("igpt-m", n_head=16, image_size=48).num_attention_heads == 16
    assert ImageGPTConfig.from_preset("igpt-l", hidden_size=768).hidden_size == 768
    assert ImageGPTConfig.from_preset("igpt-s", num_labels=10).num_labels == 10
    assert set(PRESETS) == {"igpt-s", "igpt-m", "igpt-l", "igpt-xl"}
    with pytest.raises(ValueError, match="igpt-s, igpt-m, igpt-l, igpt-xl, got 'igpt-xs'"):
        ImageGPTConfig.from_preset("igpt-xs")
    with pytest.raises(ValueError, match="Unknown config field 'n_embed'. Valid fields: .*hidden_size"):
        ImageGPTConfig.from_preset("igpt-s", n_embed=64)
    with pytest.raises(ValueError, match="`hidden_size` must be divisible"):
        ImageGPTConfig.from_preset("igpt-s", n_head=7)


def test_overrides_at_loading_hold_and_are_checked(tmp_path):
    tiny_config(attn_pdrop=0.1).save_pretrained(tmp_path)
    config, unused = ImageGPTConfig.from_pretrained(tmp_path, attn_pdrop=0.4, foo=3, return_unused_kwargs=True)
    assert config.attn_pdrop == 0.4
    assert unused == {"foo": 3}
    assert ImageGPTConfig.from_pretrained(tmp_path, num_labels=7).num_labels == 7
    model = ImageGPTForCausalImageModeling(ImageGPTConfig.from_pretrained(tmp_path, resid_pdrop=0.3))
    assert model.transformer.h[0].dropout.p == 0.3
    with pytest.raises(ValueError, match="`attn_pdrop`"):
        ImageGPTForCausalImageModeling(ImageGPTConfig.from_pretrained(tmp_path, attn_pdrop=4))


BAD_FIELDS = [
    ("vocab_size", 2),
    ("image_size", [32]),
    ("image_size", [3, 4, 5]),
    ("image_size", 0),
    ("num_channels", 17),
    ("hidden_size", 10**9),
    ("num_hidden_layers", 0),
    ("num_attention_heads", 7),
    ("intermediate_size", 2.5),
    ("hidden_act", "nope"),
    ("hidden_act", ["gelu"]),
    ("is_causal", "true"),
    ("use_bias", 1),
    ("use_start_token", None),
    ("pooler_layer", 99),
    ("generative_loss_weight", -1),
    ("initializer_range", float("inf")),
    ("layer_norm_eps", float("nan")),
    ("embd_pdrop", 1.5),
    ("layer_types", 3),
    ("layer_types", [[1]]),
    ("layer_types", ["full_attention"]),
    ("layer_types", ["sliding_attention"] * 24),
    ("layer_types", ["full_attention"] * 23 + ["chunked_attention"]),
    ("sliding_window", 5),
    ("sliding_window", 1),
    ("sliding_window", "4"),
    ("sliding_window", 10**12),
    ("bos_token_id", 3),
    ("eos_token_id", 3),
    ("pad_token_id", 0),
    ("tie_word_embeddings", True),
    ("num_labels", 10**12),
    ("num_labels", 0),
    ("num_labels", "ten"),
    ("id2label", ["cat"]),
    ("id2label", {"a": "cat"}),
    ("label2id", 3),
    ("dtype", "float31"),
    ("torch_dtype", "nn"),
    ("problem_type", "guess"),
    ("per_layer_config", {"0": {}}),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=str)
def test_a_bad_field_is_a_value_error_that_names_it_and_the_file(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        ImageGPTConfig(**{field: value})
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "igpt", field: value}))
    with pytest.raises(ValueError, match=f"`{field}`") as error:
        ImageGPTConfig.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


WINDOWED = ["sliding_attention", "full_attention"]
BAD_WINDOWS = {
    "too few types": ({"layer_types": ["sliding_attention"], "sliding_window": 4}, "each of the 2 blocks.*got 1"),
    "unknown type": ({"layer_types": ["sliding_attention", "local"], "sliding_window": 4}, "got 'local'"),
    "no window": ({"layer_types": WINDOWED}, "belong together, got 1 such blocks and sliding_window=None"),
    "no types": ({"sliding_window": 4}, "no block has a window. Give `layer_types`"),
    "no windowed block": ({"layer_types": ["full_attention"] * 2, "sliding_window": 4}, "got 0 such blocks"),
    "one token": ({"layer_types": WINDOWED, "sliding_window": 1}, "from 2 to"),
    "a truth value": ({"layer_types": WINDOWED, "sliding_window": True}, "got True"),
}


@pytest.mark.parametrize(("fields", "message"), BAD_WINDOWS.values(), ids=BAD_WINDOWS)
def test_types_and_window_must_fit_each_other_also_where_they_are_set_later(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)
    config = tiny_config()
    for name, value in fields.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        ImageGPTForCausalImageModeling(config)


def test_the_type_of_every_block_is_known_whether_or_not_it_is_given():
    assert tiny_config().attention_types == ["full_attention"] * 2
    assert tiny_config(layer_types=WINDOWED, sliding_window=4).attention_types == WINDOWED
    assert tiny_config(layer_types=tuple(WINDOWED), sliding_window=4).layer_types == WINDOWED


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-5, 5), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
FIELDS = [*ImageGPTConfig.field_names(), *ALIASES, "n_positions", "num_labels", "id2label", "dtype", "problem_type"]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FIELDS), JUNK)
def test_any_value_of_any_field_is_refused_by_name_or_comes_back_equal(tmp_path, field, value):
    """A ValueError that names the field (or the one it is checked against), or an equal round trip through a file."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "igpt", field: value}))
    start = time.perf_counter()
    try:
        config = ImageGPTConfig.from_pretrained(tmp_path)
    except ValueError as error:
        assert any(f"`{name}`" in str(error) for name in (field, ALIASES.get(field))), str(error)
    else:
        config.save_pretrained(tmp_path)
        again = ImageGPTConfig.from_pretrained(tmp_path)
        assert again.to_dict() == config.to_dict()
        if value is not None and field not in ("dtype", "id2label"):
            assert getattr(again, field) == value
    assert time.perf_counter() - start < 5


NO_CONFIGS = {
    "list": b"[1, 2]",
    "text": b'"igpt"',
    "null": b"null",
    "empty": b"",
    "cut": b'{"model_type": "igpt", "hidden',
    "not UTF-8": b'\xff\xfe{"model_type": "igpt"}',
    "deep list": b"[" * 100_000 + b"]" * 100_000,
    "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "long number": b'{"model_type": "igpt", "hidden_size": ' + b"9" * 5000 + b"}",
    "other file names": b'{"model_type": "igpt", "configuration_files": 3}',
    "another model": b'{"model_type": "bert"}',
    "list of types": b'{"model_type": ["igpt"]}',
}


@pytest.mark.parametrize("content", NO_CONFIGS.values(), ids=NO_CONFIGS)
@pytest.mark.parametrize("loader", [ImageGPTConfig, ImageGPTForCausalImageModeling])
def test_a_file_that_is_no_config_is_refused_with_its_name(tmp_path, content, loader):
    ImageGPTForCausalImageModeling(tiny_config()).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises((ValueError, OSError)) as error:
        loader.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_missing_config_is_an_error_that_names_the_folder(tmp_path):
    for loader in (ImageGPTConfig, ImageGPTForCausalImageModeling):
        with pytest.raises(OSError, match=tmp_path.name):
            loader.from_pretrained(tmp_path)
