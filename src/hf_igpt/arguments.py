"""Arguments of the commands: dataclass fields from a recipe (a flat YAML file), from flags, or both."""

import argparse
import contextlib
import dataclasses
import difflib
import logging
import math
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar


T = TypeVar("T")
Condition = tuple[str, Callable[[Any], bool]]

MAX_RECIPE_BYTES = 1 << 16
SHIPPED_RECIPES = Path(__file__).parent / "recipes"

# Values of YAML 1.2. In YAML 1.1, which PyYAML follows, 1e-4 is text, 010 is eight, 1:30 is ninety and `no` is false.
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_WHOLE = re.compile(r"[-+]?[0-9]{1,40}")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.inf|\.nan", re.IGNORECASE)
_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}

logger = logging.getLogger(__name__)


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    only_if: Condition | tuple[Condition, ...] | None = None,
) -> Any:
    """
    A dataclass field with its help text, which states the unit, and its range: `low` and `high` are allowed values,
    `above` is not. `only_if` names another field and says for which of its values this one has an effect; or several
    others, all of which must have such values. A list as default becomes a factory.
    """
    conditions = () if only_if is None else (only_if,) if isinstance(only_if[0], str) else only_if
    metadata = {"help": help, "low": low, "high": high, "above": above, "choices": choices, "only_if": conditions}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse_arguments(arguments_class: type[T], description: str, argv: list[str] | None = None) -> T:
    """
    Parses `[RECIPE] [--field value ...]`. Flags override the recipe, `null` leaves an optional field empty, and what
    the recipe gives for a field that a flag leaves without effect is dropped.

    Raises:
        ValueError: the recipe is unreadable, or values are wrong or without effect; the message lists every problem
            at once.
        SystemExit: on `--help`, or for flags that don't exist (argparse prints which).
    """
    flags = vars(_build_parser(arguments_class, description).parse_args(argv))
    name = flags.pop("recipe", None)
    recipe, source = ({}, None) if name is None else load_recipe(name)
    hints = typing.get_type_hints(arguments_class)
    flags = {field: _flag_value(value, hints[field]) for field, value in flags.items()}
    recipe_problems, flag_problems = _problems(arguments_class, recipe), _problems(arguments_class, flags)
    recipe_problems += _without_effect(arguments_class, recipe, recipe)
    recipe = _drop_overridden(arguments_class, recipe, flags)
    flag_problems += _without_effect(arguments_class, flags, recipe | flags)
    where = ((source, recipe_problems), ("arguments", flag_problems))
    if messages := [f"{place}: {'; '.join(problems)}" for place, problems in where if problems]:
        raise ValueError(". ".join(messages))
    return arguments_class(**(recipe | flags))


def _build_parser(arguments_class: type, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", help="path of a YAML file, or the name of a shipped recipe")
    hints = typing.get_type_hints(arguments_class)
    for field in dataclasses.fields(arguments_class):
        kind = _kinds(hints[field.name])[0]
        # What isn't given stays away, so that a flag that repeats a default still overrides the recipe.
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field)}
        if kind is bool:
            # `--flag` turns it on, `--no-flag` off again where a recipe has it on.
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["metavar"] = "VALUE"
            settings["nargs"] = "+" if typing.get_origin(kind) is list else None
        parser.add_argument(f"--{field.name}", **settings)
    return parser


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


def _flag_value(value: Any, hint: Any) -> Any:
    """The value a flag's text stands for; the text itself where it is none of the field's type."""
    if isinstance(value, list):
        return [_flag_value(item, hint) for item in value]
    kind = _kinds(hint)[0]
    kind = typing.get_args(kind)[0] if typing.get_origin(kind) is list else kind
    if value == "null" and _takes_null(hint):
        return None
    if kind in (bool, str):
        return value
    for number in (int, float) if kind is int else (float,):
        try:
            return number(value)
        except ValueError:
            continue
    return value


def _drop_overridden(arguments_class: type, recipe: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """The recipe without the fields that flags override or leave without effect."""
    kept = {name: value for name, value in recipe.items() if name not in flags}
    for field in dataclasses.fields(arguments_class):
        for other, has_effect in field.metadata["only_if"]:
            if field.name in kept and other in flags and not _is_met(has_effect, flags[other]):
                logger.info("--%s replaces the recipe's `%s`.", other, field.name)
                del kept[field.name]
    return kept


def _without_effect(arguments_class: type, given: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """A problem for each field among `given` that the other `values`, or their defaults, leave without effect."""
    names = {name for name, value in given.items() if value is not None}
    return [
        f"`{name}` has no effect where `{other}` is {value!r}, change one of them"
        for name, other, value in _idle(arguments_class, names, values)
    ]


def _idle(arguments_class: type, names: set[str], values: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Those of the fields `names` that another one leaves without effect, with the other and its value."""
    fields = {field.name: field for field in dataclasses.fields(arguments_class)}
    for name in [name for name in fields if name in names]:
        for other, has_effect in fields[name].metadata["only_if"]:
            if other in fields and not _is_met(has_effect, value := values.get(other, _default(fields[other]))):
                yield name, other, value


def _is_met(has_effect: Callable[[Any], bool], value: Any) -> bool:
    met = has_effect(value)
    # What `"text".__eq__` says of None.
    return met is not NotImplemented and bool(met)


def fields_without_effect(arguments: Any) -> set[str]:
    """Names of the fields whose `only_if` isn't met."""
    return {name for name, _, _ in _idle(type(arguments), {*vars(arguments)}, vars(arguments))}


def _help(field: dataclasses.Field) -> str:
    metadata, default = field.metadata, _default(field)
    notes = [f"one of {', '.join(metadata['choices'])}"] if metadata["choices"] else []
    notes += [f"default {default}"] if default is not None else []
    text = f"{metadata['help']} ({'; '.join(notes)})" if notes else metadata["help"]
    return text.replace("%", "%%")


def _kinds(hint: Any) -> list[Any]:
    """The types a field takes, None left out."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return [kind for kind in kinds if kind is not type(None)]


def _takes_null(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)


def load_recipe(name_or_path: str) -> tuple[dict[str, Any], Path]:
    """
    Reads a recipe by path or, for a shipped one, by name. Returns its values and its path.

    Raises:
        ValueError: no such recipe (the message lists the shipped ones), or no flat YAML mapping of text keys.
    """
    path = Path(name_or_path)
    if not path.is_file():
        path = SHIPPED_RECIPES / f"{name_or_path}.yaml"
    if not path.is_file():
        raise ValueError(f"No recipe {name_or_path!r}: give a path, or one of {', '.join(shipped_recipes())}.")
    data = path.read_bytes()
    if len(data) > MAX_RECIPE_BYTES:
        raise ValueError(f"Recipe {path} must have at most {MAX_RECIPE_BYTES} bytes, got {len(data)}.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"Recipe {path} must be UTF-8 text: {error}.") from None
    return _parse_flat_yaml(text, path), path


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED_RECIPES.glob("*.yaml"))


def _parse_flat_yaml(text: str, path: Path) -> dict[str, Any]:
    import yaml

    try:
        # Composing builds the nodes alone: tags are not resolved and aliases are not expanded.
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        tokens = list(yaml.scan(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"Recipe {path} is no valid YAML: {error}") from None
    for token in tokens:
        if isinstance(token, (yaml.TagToken, yaml.AnchorToken, yaml.AliasToken)):
            raise ValueError(f"Recipe {path}, line {_line(token)}: tags, anchors and aliases are not taken.")
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"Recipe {path} must be a mapping of fields to values, got {_node_kind(root)}.")
    values: dict[str, Any] = {}
    for key_node, value_node in root.value:
        key = key_node.value
        if not isinstance(key_node, yaml.ScalarNode):
            raise ValueError(f"Recipe {path}: a field name must be text, got {_node_kind(key_node)}.")
        if key in values:
            raise ValueError(f"Recipe {path}: field {key!r} stands there twice, again in line {_line(key_node)}.")
        values[key] = _node_value(value_node, key, path)
    return values


def _node_value(node: Any, key: str, path: Path) -> Any:
    import yaml

    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [_node_value(item, key, path) for item in node.value]
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(
            f"Recipe {path}, line {_line(node)}: {key!r} must be a value or a flat list, got {_node_kind(node)}."
        )
    is_quoted = node.style is not None
    return node.value if is_quoted else _plain_value(node.value)


def _plain_value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _WHOLE.fullmatch(text):
        return int(text)
    if _INFINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return float(text) if _NUMBER.fullmatch(text) else text


def _node_kind(node: Any) -> str:
    if node is None:
        return "nothing"
    return {"MappingNode": "a mapping", "SequenceNode": "a list"}.get(type(node).__name__, "a value")


def _line(node: Any) -> int:
    return node.start_mark.line + 1


def _problems(arguments_class: type, values: dict[str, Any]) -> list[str]:
    """Coerces `values` in place where that loses nothing, and lists everything that is wrong with them."""
    fields = {field.name: field for field in dataclasses.fields(arguments_class)}
    hints = typing.get_type_hints(arguments_class)
    problems = []
    for name, value in values.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f", did you mean {close[0]!r}?" if close else f". Valid fields: {', '.join(sorted(fields))}"
            problems.append(f"unknown field {name!r}{hint}")
            continue
        try:
            values[name] = _coerce(value, hints[name])
        except TypeError:
            problems.append(f"`{name}` must be {_type_name(hints[name])}, got {_shown(value)}")
            continue
        problems += _range_problems(name, values[name], fields[name].metadata)
    return problems


def _coerce(value: Any, hint: Any) -> Any:
    if value is None and _takes_null(hint):
        return None
    kind, *others = _kinds(hint)
    if others:
        with contextlib.suppress(TypeError):
            return _coerce(value, kind)
        kind = others[0]
    if typing.get_origin(kind) is list:
        items = value if isinstance(value, list) else [value]
        return [_coerce(item, typing.get_args(kind)[0]) for item in items]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise TypeError
    return value


def _type_name(hint: Any) -> str:
    kind = _kinds(hint)[0]
    is_list = typing.get_origin(kind) is list
    name = f"{_TYPE_NAMES[typing.get_args(kind)[0]]} or a list of them" if is_list else _TYPE_NAMES[kind]
    return f"{name} or null" if _takes_null(hint) else name


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _range_problems(name: str, value: Any, metadata: dict[str, Any]) -> list[str]:
    problems = []
    for item in value if isinstance(value, list) else [value]:
        if item is None:
            continue
        if metadata.get("choices") and isinstance(item, str) and item not in metadata["choices"]:
            numbers = (
                "a number or " if any(metadata.get(bound) is not None for bound in ("low", "high", "above")) else ""
            )
            problems.append(f"`{name}` must be {numbers}one of {', '.join(metadata['choices'])}, got {_shown(item)}")
        if isinstance(item, float) and not math.isfinite(item):
            problems.append(f"`{name}` must be finite, got {item}")
        elif isinstance(item, int | float) and not isinstance(item, bool):
            for bound, wrong, words in (
                (metadata.get("low"), lambda a, b: a < b, "at least"),
                (metadata.get("high"), lambda a, b: a > b, "at most"),
                (metadata.get("above"), lambda a, b: a <= b, "above"),
            ):
                if bound is not None and wrong(item, bound):
                    problems.append(f"`{name}` must be {words} {bound}, got {item}")
    return problems
