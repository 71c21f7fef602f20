"""A YAML or TOML file into a validated :class:`ServiceConfig`, and back into commented YAML."""

import json
import tomllib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cacovid.errors import UserError
from serving.config import ServiceConfig
from serving.schema import service_values


def load_service_config(path: Path) -> ServiceConfig:
    """Read ``path``; a file for ``serve deploy`` is taken by its only application.

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
    return parse_service_config(service_values(values, str(path)) if "applications" in values else values, str(path))


def parse_service_config(values: dict[str, Any], where: str = "config") -> ServiceConfig:
    """Validate plain values; raises UserError that names the first field at fault."""
    try:
        return ServiceConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {place + ': ' if place else ''}{first['msg']} (found {first['input']!r})") from error


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
