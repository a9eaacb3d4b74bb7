import dataclasses
import math
import os
import typing
from dataclasses import dataclass
from operator import not_
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_igpt.arguments import MAX_RECIPE_BYTES, option, parse_arguments, shipped_recipes
from hf_igpt.commands.evaluate import EvaluateArguments
from hf_igpt.commands.fit_palette import FitPaletteArguments
from hf_igpt.commands.sample import SampleArguments
from hf_igpt.commands.tokenize_dataset import TokenizeArguments
from hf_igpt.training.arguments import PretrainArguments


ALL = (EvaluateArguments, FitPaletteArguments, PretrainArguments, SampleArguments, TokenizeArguments)


@dataclass(kw_only=True)
class Example:
    rate: float = option(0.5, "share, 50% of all", above=0, high=1)
    steps: int | None = option(None, "optimizer steps", low=1)
    sizes: list[int] = option([8], "sides in pixels", low=1, high=64)
    name: str = option("none", "a word")
    kind: str = option("plain", "a kind", choices=("plain", "fancy"))
    verbose: bool = option(False, "say more")
    epochs: float = option(2.0, "passes", above=0, only_if=("steps", not_))
    colors: int = option(4, "colours of fancy ones", low=2, only_if=("kind", "fancy".__eq__))


@pytest.fixture
def parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def parse(recipe: str | bytes | None, *flags: str, of: type = Example):
        if recipe is None:
            return parse_arguments(of, "Text.", list(flags))
        Path("a recipe.yaml").write_bytes(recipe if isinstance(recipe, bytes) else recipe.encode())
        return parse_arguments(of, "Text.", ["a recipe.yaml", *flags])

    return parse


def test_defaults_without_anything(parse):
    assert parse(None) == Example() == parse("{}")
    assert parse(None).sizes is not parse(None).sizes


def test_values_of_a_recipe(parse):
    text = "rate: 1e-4\nsteps: 30\nsizes: [8, 16]\nname: '2012'\nkind: fancy\nverbose: true\n"
    expected = Example(rate=1e-4, steps=30, sizes=[8, 16], name="2012", kind="fancy", verbose=True)
    assert parse(text) == expected
    assert parse("sizes: 32").sizes == [32]
    assert parse("steps: null").steps is None and parse("steps:").steps is None and parse("steps: 1e3").steps == 1000
    assert parse("rate: 1").rate == 1.0 and isinstance(parse("rate: 1").rate, float)


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "0.0003", "+.3e-3", "3.e-4", "0.3e-03"])
def test_numbers_as_people_write_them(parse, text):
    assert parse(f"rate: {text}").rate == parse(None, "--rate", text).rate == pytest.approx(3e-4)


@pytest.mark.parametrize(("text", "meaning"), [("010", 10), ("0012", 12), ("+7", 7)])
def test_whole_numbers_are_decimal(parse, text, meaning):
    """YAML 1.1 would read the first as eight."""
    assert parse(f"steps: {text}").steps == parse(None, "--steps", text).steps == meaning


WRONG = [
    ("rate: fast", "`rate` must be a number, got 'fast'"),
    ("rate: '0.5'", "`rate` must be a number, got '0.5'"),
    ("rate: nan", "`rate` must be a number, got 'nan'"),
    ("rate: .nan", "`rate` must be finite, got nan"),
    ("rate: -.inf", "`rate` must be finite, got -inf"),
    ("rate: 1e999", "`rate` must be finite, got inf"),
    ("rate: 0", "`rate` must be above 0, got 0.0"),
    ("rate: 1.01", "`rate` must be at most 1, got 1.01"),
    ("rate: null", "`rate` must be a number, got None"),
    ("rate: true", "`rate` must be a number, got True"),
    ("rate: 1:30", "`rate` must be a number, got '1:30'"),
    ("steps: 2.5", "`steps` must be a whole number or null, got 2.5"),
    ("steps: 0", "`steps` must be at least 1, got 0"),
    ("steps: false", "`steps` must be a whole number or null, got False"),
    (f"steps: {'9' * 5000}", "`steps` must be a whole number or null, got inf"),
    (f"name: [{'x, ' * 5000}]", "`name` must be text, got ['x', 'x'"),
    ("sizes: [8, 65]", "`sizes` must be at most 64, got 65"),
    ("sizes: [8, x]", "`sizes` must be a whole number or a list of them, got [8, 'x']"),
    ("sizes: [8, null]", "`sizes` must be a whole number or a list of them"),
    ("name: 2012", "`name` must be text, got 2012"),
    ("name: [a, b]", "`name` must be text, got ['a', 'b']"),
    ("kind: nice", "`kind` must be one of plain, fancy, got 'nice'"),
    ("verbose: 'false'", "`verbose` must be true or false, got 'false'"),
    ("verbose: no", "`verbose` must be true or false, got 'no'"),
    ("verbose: 0", "`verbose` must be true or false, got 0"),
    ("stepz: 3", "unknown field 'stepz', did you mean 'steps'?"),
    ("qqq: 3", "unknown field 'qqq'. Valid fields: colors, epochs, kind, name, rate, sizes, steps, verbose"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_values_are_named(parse, text, message):
    with pytest.raises(ValueError) as error:
        parse(text)
    assert str(error.value).startswith("a recipe.yaml: ") and message in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rate", "fast"], "`rate` must be a number, got 'fast'"),
        (["--rate", "nan"], "`rate` must be finite, got nan"),
        (["--rate", "null"], "`rate` must be a number, got 'null'"),
        (["--steps", "0"], "`steps` must be at least 1, got 0"),
        (["--steps", "1.5"], "`steps` must be a whole number or null, got 1.5"),
        (["--steps", "9" * 5000], "`steps` must be a whole number or null, got inf"),
        (["--sizes", "8", "x"], "`sizes` must be a whole number or a list of them, got [8, 'x']"),
        (["--kind", "nice"], "`kind` must be one of plain, fancy, got 'nice'"),
    ],
)
def test_wrong_flags_are_named(parse, flags, message):
    with pytest.raises(ValueError) as error:
        parse(None, *flags)
    assert str(error.value).startswith("arguments: ") and message in str(error.value)


def test_all_problems_at_once(parse):
    with pytest.raises(ValueError) as error:
        parse("rate: 2\nsteps: x\nwhat: 1\nkind: nice", "--sizes", "0", "100", "--rate", "nan")
    for problem in (
        "`rate` must be at most",
        "`steps`",
        "'what'",
        "`kind`",
        "least 1, got 0",
        "most 64, got 100",
        "nan",
    ):
        assert problem in str(error.value)


@pytest.mark.parametrize("flag", ["--stp", "--step", "--rates", "--no-steps", "--output-dir"])
def test_abbreviations_and_unknown_flags_are_refused(parse, flag, capsys):
    with pytest.raises(SystemExit) as end:
        parse(None, flag, "1")
    assert end.value.code == 2 and flag in capsys.readouterr().err.splitlines()[-1]


def test_flags_override_the_recipe(parse):
    recipe = "rate: 0.1\nsteps: 3\nsizes: [8, 9]\nverbose: true\nname: a"
    assert parse(recipe, "--rate", "0.2", "--sizes", "7") == Example(
        rate=0.2, steps=3, sizes=[7], verbose=True, name="a"
    )
    # A flag that repeats the default is a flag all the same.
    assert parse(recipe, "--rate", "0.5").rate == 0.5
    assert parse(recipe, "--no-verbose").verbose is False and parse(recipe, "--verbose").verbose is True
    assert parse(None, "--verbose").verbose is True and parse(None, "--no-verbose").verbose is False
    assert parse(recipe, "--steps", "null").steps is None and parse(recipe, "--name", "null").name == "null"
    assert parse(None, "--name", "1e5").name == "1e5"


def test_options_without_effect_are_refused(parse):
    with pytest.raises(ValueError, match="a recipe.yaml: `epochs` has no effect where `steps` is 3, change one"):
        parse("epochs: 2\nsteps: 3")
    with pytest.raises(ValueError, match="arguments: `epochs` has no effect where `steps` is 3"):
        parse(None, "--epochs", "5", "--steps", "3")
    with pytest.raises(ValueError, match="arguments: `colors` has no effect where `kind` is 'plain'"):
        parse(None, "--colors", "3")
    with pytest.raises(ValueError, match="arguments: `epochs` has no effect where `steps` is 3"):
        parse("steps: 3", "--epochs", "5")
    assert parse("steps: 3", "--epochs", "5", "--steps", "null") == Example(epochs=5.0)
    assert parse("kind: fancy", "--colors", "3").colors == 3
    # The recipe's own are overridden, as flags do.
    assert parse("epochs: 5\nrate: 0.1", "--steps", "3") == Example(steps=3, rate=0.1)
    assert parse("kind: fancy\ncolors: 9", "--kind", "plain").colors == 4


PAIRS = [
    ("max_steps: 5", "num_train_epochs: 2"),
    ("preset: igpt-s", "hidden_size: 64"),
    ("preset: igpt-s", "num_hidden_layers: 2"),
    ("preset: igpt-s", "num_attention_heads: 2"),
    ("palette: here", "num_colors: 8"),
    ("palette: here", "crop_size: 32"),
    ("augmentation: flip", "augmentation_padding: 2"),
    ("augmentation: none", "augmentation_padding: 2"),
    ("objective: next_pixel", "mask_rate: 0.3"),
    ("objective: next_pixel", "mask_rate: uniform"),
    ("fold_validation: true", "validation_fraction: 0.2"),
    ("fold_validation: true", "eval_steps: 20"),
    ("streaming: true", "num_proc: 2"),
]


@pytest.mark.parametrize(("chosen", "useless"), PAIRS)
def test_pairs_of_pretraining_options(parse, chosen, useless):
    parse(chosen, of=PretrainArguments)
    field = useless.split(":")[0]
    with pytest.raises(ValueError, match=f"`{field}` has no effect where `{chosen.split(':')[0]}` is"):
        parse(f"{useless}\n{chosen}", of=PretrainArguments)


def test_pairs_of_sampling_options(parse):
    for useless in ("--rows_kept", "--completions_per_image"):
        with pytest.raises(ValueError, match="has no effect where `num_completions` is 0"):
            parse(None, "--num_completions", "0", useless, "3", of=SampleArguments)


# Recipes that are none


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must be a mapping of fields to values, got nothing"),
        ("# a comment alone", "got nothing"),
        ("- rate\n- 3", "got a list"),
        ("rate", "got a value"),
        (b"rate: 0.5\nname: \xff\xfe", "must be UTF-8 text"),
        ("rate: 0.1\nrate: 0.2", "field 'rate' stands there twice, again in line 2"),
        ("rate: {a: 1}", "line 1: 'rate' must be a value or a flat list, got a mapping"),
        ("sizes: [[1]]", "'sizes' must be a value or a flat list, got a list"),
        ("? [a, b]\n: 1", "a field name must be text, got a list"),
        ("rate: 1\n---\nrate: 2", "is no valid YAML"),
        ("rate: [1, 2", "is no valid YAML"),
        ("rate: 'a", "is no valid YAML"),
        ("rate: \x00", "is no valid YAML"),
        ("rate: !!float 1", "line 1: tags, anchors and aliases are not taken"),
        ("name: a\nkind: !!python/object/apply:os.mkdir [made]", "line 2: tags, anchors and aliases"),
        ("name: &a b\nkind: *a", "line 1: tags, anchors and aliases"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "tags, anchors and aliases|must be a value or a flat list"),
        ("<<: {rate: 1}", "must be a value or a flat list"),
        ("rate: " + "[" * 20000, "is no valid YAML"),
        ("{" * 20000, "is no valid YAML"),
        ("name: " + "x" * MAX_RECIPE_BYTES, f"must have at most {MAX_RECIPE_BYTES} bytes"),
    ],
)
def test_files_that_are_no_recipe(parse, content, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(content)
    assert "a recipe.yaml" in str(error.value)
    assert not os.path.exists("made")


def test_the_largest_recipe_is_read(parse):
    lists = "sizes: [" + "1, " * ((MAX_RECIPE_BYTES - 20) // 3) + "1]"
    assert len(parse(lists).sizes) > 20000


def test_recipes_that_are_not_there(parse, tmp_path):
    for name in ("nothing", "", str(tmp_path), "../digits", "nothing.yaml"):
        with pytest.raises(ValueError, match=f"No recipe .*: give a path, or one of {', '.join(shipped_recipes())}"):
            parse(None, name)


# Every command


def values_of(field: dataclasses.Field, hint) -> st.SearchStrategy:
    """Values a field takes, at its limits too."""
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None)]
    low, high, above = (field.metadata[name] for name in ("low", "high", "above"))
    if typing.get_origin(hint) is list:
        return st.lists(st.integers(low, high), min_size=1, max_size=3)
    if field.metadata["choices"]:
        values = st.sampled_from(field.metadata["choices"])
    elif kinds[0] is bool:
        values = st.booleans()
    elif kinds[0] is int:
        values = st.integers(low, high if high is not None else 10**12)
    elif kinds[0] is float:
        bound = low if low is not None else above
        values = st.floats(bound, high, exclude_min=above is not None, allow_nan=False, allow_infinity=False)
    else:
        values = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20)
    return values | st.none() if len(kinds) < len(typing.get_args(hint)) else values


def wrong_values_of(field: dataclasses.Field, hint) -> st.SearchStrategy:
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None)]
    low, high, above = (field.metadata[name] for name in ("low", "high", "above"))
    if kinds[0] is str:
        wrong = [st.integers(), st.booleans(), st.floats(), st.lists(st.text(), max_size=2)]
        wrong += [st.text(max_size=5).filter(lambda text: text not in field.metadata["choices"])] * bool(
            field.metadata["choices"]
        )
    elif kinds[0] is bool:
        wrong = [st.integers(), st.sampled_from(["yes", "no", "True ", "1"]), st.floats()]
    else:
        wrong = [st.text(), st.booleans(), st.sampled_from([math.nan, math.inf, -math.inf])]
        wrong += [st.floats(0.01, 0.99)] if kinds[0] is int else []
        wrong += [st.integers(max_value=low - 1)] if low is not None else []
        wrong += [st.integers(max_value=above)] if above is not None else []
        wrong += [st.integers(min_value=math.floor(high) + 1)] if high is not None else []
    return st.one_of(wrong)


def fields_of(arguments_class: type) -> list[tuple[dataclasses.Field, typing.Any]]:
    hints = typing.get_type_hints(arguments_class)
    return [(field, hints[field.name]) for field in dataclasses.fields(arguments_class)]


class QuotedDumper(yaml.SafeDumper):
    """Quotes every text: PyYAML leaves out the quotes around what is a number in YAML 1.2 alone, such as 0E0."""


QuotedDumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, '"'))


def quoted_yaml(values: dict) -> str:
    return yaml.dump(values, Dumper=QuotedDumper, allow_unicode=True)


@pytest.mark.parametrize("arguments_class", ALL)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_valid_values_come_back_equal(tmp_path_factory, arguments_class, data):
    fields = data.draw(st.lists(st.sampled_from(fields_of(arguments_class)), unique_by=lambda pair: pair[0].name))
    # Which options go together is tested above.
    fields = [pair for pair in fields if not pair[0].metadata["only_if"]]
    values = {field.name: data.draw(values_of(field, hint), field.name) for field, hint in fields}
    path = tmp_path_factory.getbasetemp() / "valid.yaml"
    path.write_text(quoted_yaml(values))
    assert parse_arguments(arguments_class, "Text.", [str(path)]) == arguments_class(**values)


@pytest.mark.parametrize("arguments_class", ALL)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_wrong_value_names_its_field(tmp_path_factory, arguments_class, data):
    field, hint = data.draw(st.sampled_from(fields_of(arguments_class)))
    path = tmp_path_factory.getbasetemp() / "wrong.yaml"
    path.write_text(quoted_yaml({field.name: data.draw(wrong_values_of(field, hint))}))
    with pytest.raises(ValueError, match=f"wrong.yaml: `{field.name}` must be "):
        parse_arguments(arguments_class, "Text.", [str(path)])


@pytest.mark.parametrize("arguments_class", ALL)
def test_every_option_has_a_help_text_and_takes_its_own_default(arguments_class, capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_arguments(arguments_class, "Text.", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for field, _ in fields_of(arguments_class):
        assert f"--{field.name} " in text and " ".join(field.metadata["help"].split())[:20] in text
    for field, _ in fields_of(arguments_class):
        default = getattr(arguments_class(), field.name)
        if default is None or isinstance(default, bool) or field.metadata["only_if"]:
            continue
        words = map(str, default if isinstance(default, list) else [default])
        assert parse_arguments(arguments_class, "Text.", [f"--{field.name}", *words]) == arguments_class()


def test_a_percent_sign_in_a_help_text(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_arguments(Example, "Text.", ["--help"])
    assert "share, 50% of all (default 0.5)" in capsys.readouterr().out
