"""TOML files and ``section.field=value`` overrides into a validated :class:`TrainConfig`."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cacovid.config import TrainConfig
from cacovid.errors import UserError


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read ``path`` (None: all defaults) and lay ``section.field=value`` overrides over it.

    Raises:
        UserError: Unreadable TOML, an unknown field or a value that does not fit, each named.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text())
        except OSError as error:
            raise UserError(f"cannot read the config {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid TOML: {error}") from error
    return with_overrides(values, dict(parse_override(each) for each in overrides))


def parse_override(text: str) -> tuple[str, Any]:
    """``"run.seed=3"`` -> ``("run.seed", 3)``; the value is read as TOML, else taken as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UserError(f"override {text!r} is not of the form section.field=value, e.g. run.seed=3")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    return name.strip(), parsed


def with_overrides(base: TrainConfig | Mapping[str, Any], overrides: Mapping[str, Any]) -> TrainConfig:
    """A new config: ``base`` with dotted fields replaced, validated as a whole."""
    values: dict[str, Any] = base.model_dump() if isinstance(base, TrainConfig) else dict(base)
    for dotted, value in overrides.items():
        section, dot, field = dotted.partition(".")
        if not dot:
            raise UserError(f"override {dotted!r} names no field: write section.field=value, e.g. run.seed=3")
        group = values.setdefault(section, {})
        values[section] = {**group, field: value} if isinstance(group, Mapping) else {field: value}
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(_explain(each) for each in error.errors())) from error


def _explain(error: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "config"
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown field; `cacovid config` lists them all"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{place}: {error['msg']} (found {error['input']!r})"


def to_toml(config: TrainConfig) -> str:
    """The whole config as TOML with each field's explanation behind it; None fields are commented out."""
    lines: list[str] = []
    for section, model in config:
        lines.append(f"[{section}]")
        for name, field in type(model).model_fields.items():
            value = model.model_dump()[name]
            assignment = f"# {name} =" if value is None else f"{name} = {_toml_value(value)}"
            lines.append(f"{assignment}  # {field.description}")
        lines.append("")
    return "\n".join(lines)


def _toml_value(value: bool | int | float | str | Sequence[Any]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    if isinstance(value, (int, float)):
        return repr(value)
    return "[" + ", ".join(_toml_value(each) for each in value) + "]"
