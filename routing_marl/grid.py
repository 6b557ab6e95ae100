"""What a comparison runs: the product of methods, suites, seeds and settings, from a small file or from options."""

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from routing_marl.config import AgentConfig, EngineConfig, NetworkConfig, RunConfig
from routing_marl.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PARTS = ("engine", "network", "agent")
PLURALS = {"methods": "method", "suites": "suite", "seeds": "seed"}

_KINDS: dict[str, Any] = {
    **{name: kind for name, kind in get_type_hints(RunConfig).items() if name not in (*PARTS, "data_dir", "device")},
    **get_type_hints(EngineConfig),
    **get_type_hints(NetworkConfig),
    **get_type_hints(AgentConfig),
}
"""The type of everything that may vary; no two parts have a setting of the same name."""

SHIPPED = {path.stem: path for path in sorted(Path(__file__).with_name("grids").glob("*.yaml"))}
"""The comparisons that come with the package, by name."""

_PART = {field.name: part for part in PARTS for field in fields(get_type_hints(RunConfig)[part])}


Grid = Mapping[str, tuple[Any, ...]]
"""For each setting (``method``, ``suite``, ``seed``, ``rho``, ...) the values that it takes; their product is run."""


def expand(grid: Grid, base: RunConfig) -> list[RunConfig]:
    """The base with every combination of the values; methods vary fastest and seeds slowest."""
    names = sorted(grid, key=lambda name: {"seed": 0, "suite": 1, "method": 3}.get(name, 2))
    return [
        _changed(base, dict(zip(names, combination, strict=True)))
        for combination in itertools.product(*(grid[name] for name in names))
    ]


def read_grid(path: Path) -> list[Grid]:
    """Reads a comparison from a TOML or YAML file, or one of those that come with the package, by its name.

    A key is the name of an option of ``routing-marl compare`` (``methods``, ``suites``, ``seeds``, ``epochs``, ``rho``,
    ...), its value one value or a list, of which each is run. Tables in ``grids``, where there are any, are run one
    after the other, each with what stands above them.

    Raises:
        UserError: the file is missing or no TOML or YAML, or a key or a value does not fit.
    """
    path = SHIPPED.get(str(path), path)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        hint = "" if path.suffix else f"; those that come with the package are {', '.join(SHIPPED)}"
        raise UserError(f"the grid {path} can't be read: {why}{hint}") from error
    try:
        content = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        kind = "TOML" if path.suffix == ".toml" else "YAML (a file in TOML is named .toml)"
        raise UserError(f"the grid {path} is no {kind}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"the grid {path} is a {type(content).__name__}; it must hold lines like seeds: [0, 1, 2]")
    tables = content.pop("grids", [{}])
    if not (isinstance(tables, list) and tables and all(isinstance(table, dict) for table in tables)):
        raise UserError(f"grids in {path} must be a list of tables")
    try:
        return [dict(_entry(name, values) for name, values in {**content, **table}.items()) for table in tables]
    except UserError as error:
        raise UserError(f"in the grid {path}: {error}") from error


def parse_vary(words: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Reads ``NAME=VALUE,VALUE,...`` words."""
    varied: dict[str, tuple[Any, ...]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not equals:
            raise UserError(f"vary is {word!r}; it is written NAME=VALUE,VALUE, say rho=0,0.3")
        key, parsed = _entry(name, [value for value in values.split(",") if value])
        if key in varied:
            raise UserError(f"vary names {key} twice; give all values at once")
        varied[key] = parsed
    return varied


def _entry(name: object, values: Any) -> tuple[str, tuple[Any, ...]]:
    key = PLURALS.get(key := str(name).replace("-", "_"), key)
    if key not in _KINDS:
        close = get_close_matches(key, [*_KINDS, *PLURALS], n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join([*PLURALS, *_KINDS])}"
        raise UserError(f"there is no setting {name!s}; {hint}")
    listed = values if isinstance(values, list) else [values]
    typed = tuple(_typed(str(name), value, _KINDS[key]) for value in listed)
    check_list(str(name), typed)
    return key, typed


def check_list(name: str, values: Sequence[Any]) -> None:
    """Raises UserError for an empty list, or one that says something twice."""
    if not values:
        raise UserError(f"{name} is empty; give at least one")
    if len(set(values)) < len(values):
        raise UserError(f"{name} is {','.join(map(str, values))}; each may be given once")


def _typed(name: str, value: Any, kind: Any) -> Any:
    """The value as the type that the setting has; words of a command line or YAML's 1e-3 are read as such."""
    for one in get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,):
        if get_origin(one) is Literal and value in get_args(one):
            return value
        if one is bool and (isinstance(value, bool) or value in ("true", "false", "True", "False")):
            return value in (True, "true", "True")
        if one is str and isinstance(value, str):
            return value
        if one in (int, float) and not isinstance(value, bool):
            try:
                number = one(value)
            except (TypeError, ValueError, OverflowError):
                continue
            if isinstance(value, str) or number == value:
                return number
    raise UserError(f"{name} is {value!r}; it must be {_described(kind)}")


def _described(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "a name")


def _changed(base: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    top = {name: value for name, value in values.items() if name not in _PART}
    parts = {}
    for part in PARTS:
        own = {name: value for name, value in values.items() if _PART.get(name) == part}
        parts[part] = replace(getattr(base, part), **own)
    return replace(base, **top, **parts)
