"""A YAML or TOML file into a validated :class:`ServiceConfig`, and back into commented YAML."""

import json
import tomllib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cacovid.errors import UserError
from serving.config import ServiceConfig


def load_service_config(path: Path) -> ServiceConfig:
    """Read ``path``; a file for ``serve deploy`` is taken by its application's ``args``.

    Raises:
        UserError: an unreadable file, an unknown field or a value that does not fit, each named.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values: Any = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be parsed: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no fields: see serving/config.yaml for an example")
    return parse_service_config(_of_application(values, path), str(path))


def parse_service_config(values: dict[str, Any], where: str = "config") -> ServiceConfig:
    """Validate plain values; raises UserError that names the first field at fault."""
    try:
        return ServiceConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {place + ': ' if place else ''}{first['msg']} (found {first['input']!r})") from error


def _of_application(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The ``args`` of the only application where the file is a Serve config."""
    if "applications" not in values:
        return values
    applications = values["applications"]
    if not isinstance(applications, list) or len(applications) != 1 or not isinstance(applications[0], dict):
        raise UserError(f"{path} names several applications: give one to `cacovid serve`, or use `serve deploy`")
    args: dict[str, Any] = applications[0].get("args", {})
    return args


def to_yaml(config: ServiceConfig) -> str:
    """The whole configuration as YAML, each field with its explanation behind it."""
    return "\n".join(_lines(config, "")) + "\n"


def _lines(section: BaseModel, indent: str) -> list[str]:
    lines: list[str] = []
    for name, field in type(section).model_fields.items():
        value = section.__dict__[name]
        if isinstance(value, BaseModel):
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {json.dumps(value)}  # {field.description}")
    return lines
