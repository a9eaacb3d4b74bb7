"""Arguments of the commands: dataclass fields from a recipe (a flat YAML file), from flags, or both."""

import argparse
import dataclasses
import difflib
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar


T = TypeVar("T")

MAX_RECIPE_BYTES = 1 << 20
SHIPPED_RECIPES = Path(__file__).parent / "recipes"


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """
    A dataclass field with its help text, which states the unit, and its range: `low` and `high` are allowed values,
    `above` is not. A list as default becomes a factory.
    """
    metadata = {"help": help, "low": low, "high": high, "above": above, "choices": choices}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse_arguments(arguments_class: type[T], description: str, argv: list[str] | None = None) -> T:
    """
    Parses `[RECIPE] [--field value ...]`; flags override the recipe.

    Raises:
        ValueError: the recipe is unreadable, or values are wrong; the message lists every problem at once.
        SystemExit: on `--help`, or flags that do not parse (argparse prints why).
    """
    parser = _build_parser(arguments_class, description)
    namespace = parser.parse_args(argv)
    if namespace.recipe is not None:
        values, source = load_recipe(namespace.recipe)
        _raise_problems(source, _problems(arguments_class, values))
        parser.set_defaults(**values)
        namespace = parser.parse_args(argv)
    values = {name: value for name, value in vars(namespace).items() if name != "recipe"}
    _raise_problems("arguments", _problems(arguments_class, values))
    return arguments_class(**values)


def _build_parser(arguments_class: type, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", help="path of a YAML file, or the name of a shipped recipe")
    hints = typing.get_type_hints(arguments_class)
    for field in dataclasses.fields(arguments_class):
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        kind = _kinds(hints[field.name])[0]
        settings: dict[str, Any] = {"default": default, "metavar": "VALUE", "help": _help(field, default)}
        if kind is bool:
            # `--flag` turns it on, `--no-flag` off again where a recipe has it on.
            settings = {"default": default, "help": _help(field, default), "action": argparse.BooleanOptionalAction}
        elif typing.get_origin(kind) is list:
            settings |= {"type": typing.get_args(kind)[0], "nargs": "+"}
        else:
            settings["type"] = kind
        parser.add_argument(f"--{field.name}", **settings)
    return parser


def _help(field: dataclasses.Field, default: Any) -> str:
    metadata = field.metadata
    notes = [f"one of {', '.join(metadata['choices'])}"] if metadata["choices"] else []
    notes += [f"default {default}"] if default is not None else []
    return f"{metadata['help']} ({'; '.join(notes)})".replace("%", "%%") if notes else metadata["help"]


def _kinds(hint: Any) -> list[Any]:
    """The types a field takes, None left out."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return [kind for kind in kinds if kind is not type(None)]


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
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"Recipe {path} is no valid YAML: {error}") from None
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
        raise ValueError(f"Recipe {path}: {key!r} must be a value or a flat list, got {_node_kind(node)}.")
    try:
        value = yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"Recipe {path}, line {_line(node)}: {key!r} can't be read: {error}") from None
    if isinstance(value, str) and node.style is None:
        # YAML 1.1 takes 1e-4 for text; people write it for a number.
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _node_kind(node: Any) -> str:
    return (
        "nothing"
        if node is None
        else {"MappingNode": "a mapping", "SequenceNode": "a list"}.get(type(node).__name__, "a value")
    )


def _line(node: Any) -> int:
    return node.start_mark.line + 1


def _raise_problems(source: Any, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{source}: " + "; ".join(problems))


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
            problems.append(f"`{name}` must be {_type_name(hints[name])}, got {value!r}")
            continue
        problems += _range_problems(name, values[name], fields[name].metadata)
    return problems


def _coerce(value: Any, hint: Any) -> Any:
    if value is None and isinstance(hint, types.UnionType):
        return None
    kind = _kinds(hint)[0]
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
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    kind = _kinds(hint)[0]
    is_list = typing.get_origin(kind) is list
    name = f"{names[typing.get_args(kind)[0]]} or a list of them" if is_list else names[kind]
    return f"{name} or null" if isinstance(hint, types.UnionType) else name


def _range_problems(name: str, value: Any, metadata: dict[str, Any]) -> list[str]:
    problems = []
    for item in value if isinstance(value, list) else [value]:
        if item is None:
            continue
        if metadata.get("choices") and item not in metadata["choices"]:
            problems.append(f"`{name}` must be one of {', '.join(metadata['choices'])}, got {item!r}")
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
