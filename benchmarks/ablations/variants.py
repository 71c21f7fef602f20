"""The variants of ``variants.toml``, and which of them measure the same trained policies."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from cacovid.config import Section, TrainConfig
from cacovid.config_files import load_config
from cacovid.errors import UserError

VARIANTS = Path(__file__).with_name("variants.toml")
CONFIGS = Path(__file__).parents[2] / "configs"
EMBEDDED = "embedded"  # the value of data.train that draws clips of world 1


class Variant(Section):
    """One row of the table."""

    name: Annotated[str, Field(pattern="^[a-z0-9.-]+$")]
    group: str  # the choice that it belongs to
    like: str | None = None  # a variant before it, with whose configuration this one begins
    config: str = "embedded"  # of configs/
    set: tuple[str, ...] = ()  # as ``cacovid train --set``
    measure: tuple[str, ...] = ()  # likewise, for measuring the trained policies alone

    def trained(self) -> TrainConfig:
        """The run, but for what all have in common."""
        return load_config(CONFIGS / f"{self.config}.toml", self.set)

    def measured(self) -> TrainConfig:
        """What the run's policies are measured with."""
        return load_config(CONFIGS / f"{self.config}.toml", [*self.set, *self.measure])


class _File(Section):
    variant: Annotated[tuple[Variant, ...], Field(min_length=1)]


class Run(Section):
    """What is trained once a seed for all variants that train alike."""

    owner: Variant  # the first of them
    variants: tuple[Variant, ...]


def read_variants(path: Path) -> tuple[Variant, ...]:
    """Those of a TOML file, in its order.

    Raises:
        UserError: It cannot be read, or a variant is malformed, there twice or no run of these ablations.
    """
    try:
        found = _File.model_validate(tomllib.loads(path.read_text())).variant
    except OSError as error:
        raise UserError(f"cannot read the variants {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from error
    known: dict[str, Variant] = {}
    for each in found:
        if each.name in known:
            raise UserError(f"{path}: two variants are called {each.name!r}: rename one")
        known[each.name] = each if each.like is None else _begun(each, known.get(each.like), path)
        try:
            _check(known[each.name])
        except UserError as error:
            raise UserError(f"{path}: {each.name}: {error}") from error
    return tuple(known.values())


def _begun(variant: Variant, like: Variant | None, path: Path) -> Variant:
    if like is None:
        raise UserError(f"{path}: {variant.name} is like {variant.like!r}, which is no variant above it")
    if "config" in variant.model_fields_set:
        raise UserError(
            f"{path}: {variant.name} is like {like.name!r}, whose config is {like.config!r}, and names "
            f"config={variant.config!r}: leave out one of the two"
        )
    return variant.model_copy(update={"config": like.config, "set": (*like.set, *variant.set)})


def _check(variant: Variant) -> None:
    """See that ``variant`` can be trained and measured on the clips that all runs share, and stand in the table."""
    for override in (*variant.set, *variant.measure):
        if override.strip().startswith("evaluation."):
            raise UserError(
                f"{override!r} would measure it unlike the others: leave it out; --every and --clips hold for all runs"
            )
    data = variant.trained().data.train
    if data != EMBEDDED:
        raise UserError(
            f"config={variant.config!r} trains on {data!r}, but the ablations draw clips of {EMBEDDED!r} alone: "
            f"name a config of configs/ with data.train={EMBEDDED!r}"
        )
    variant.measured()  # now, not after hours


def chosen(variants: Sequence[Variant], only: Sequence[str]) -> list[Variant]:
    """Those of ``only``, in the table's order; all where it is empty. Raises UserError for an unknown name."""
    names = [each.name for each in variants]
    for name in only:
        if name not in names:
            raise UserError(f"unknown variant {name!r}: choose of {', '.join(names)}")
    return [each for each in variants if not only or each.name in only]


def runs_of(variants: Sequence[Variant]) -> list[Run]:
    """Variants that differ in measuring alone, or not at all, share a run, which has the first one's name."""
    alike: dict[str, list[Variant]] = {}
    for each in variants:
        alike.setdefault(each.trained().model_dump_json(), []).append(each)
    return [Run(owner=group[0], variants=tuple(group)) for group in alike.values()]
