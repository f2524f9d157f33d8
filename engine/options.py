"""Command-line options derived from the dataclasses of vs3r/config.py."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any, TypeVar

import click

from vs3r.config import Config

_KINDS = {int: click.INT, float: click.FLOAT, str: click.STRING}

Command = TypeVar("Command", bound=Callable[..., Any])
Settings = TypeVar("Settings")


def flag_of(section: str, name: str) -> str:
    """The flag of a setting: --smoothness for smooth.smoothness; the backend of a section is called as the section."""
    return "--" + (section if name == "backend" else name).replace("_", "-")


def config_options(*sections: str) -> Callable[[Command], Command]:
    """A decorator that adds the options of some sections of Config to a click command."""

    def decorate(command: Command) -> Command:
        for section in reversed(sections):
            command = settings_options(section, type(getattr(Config(), section)))(command)
        return command

    return decorate


def settings_options(section: str, settings: type[Any]) -> Callable[[Command], Command]:
    """A decorator that adds the options of one settings dataclass to a click command."""

    def decorate(command: Command) -> Command:
        annotations = typing.get_type_hints(settings)
        for spec in reversed(fields(settings)):
            command = _option(section, spec, annotations[spec.name])(command)
        return command

    return decorate


def settings_from(section: str, settings: type[Settings], values: dict[str, Any]) -> Settings:
    """Build a settings dataclass from what click parsed; what is not given keeps its default.

    Raises:
        InputError: a value is out of its bounds.
    """
    given = {s.name: values.get(_parameter(section, s.name)) for s in fields(settings)}  # type: ignore[arg-type]
    return settings(**{name: value for name, value in given.items() if value is not None})


def config_from(values: dict[str, Any]) -> Config:
    """Build a Config from what click parsed; sections that a command lacks keep their defaults.

    Raises:
        InputError: a value is out of its bounds.
    """
    sections = (spec.name for spec in fields(Config))
    return Config(**{name: settings_from(name, type(getattr(Config(), name)), values) for name in sections})


def _parameter(section: str, name: str) -> str:
    return f"{section}__{name}"


def _option(section: str, spec: Field[Any], annotation: Any) -> Callable[[Command], Command]:
    meta = spec.metadata
    plain = [t for t in typing.get_args(annotation) if t is not types.NoneType] or [annotation]
    if plain[0] is bool:
        name = _parameter(section, spec.name)
        return click.option(flag_of(section, spec.name), name, is_flag=True, default=None, help=meta["doc"])
    notes = []
    if meta["low"] is not None and meta["high"] is not None:
        notes.append(f"{meta['low']:.10g} to {meta['high']:.10g}")
    if spec.default is not None:
        notes.append(f"default {spec.default}")
    note = f"  [{'; '.join(notes)}]" if notes else ""
    kind = click.Choice(meta["choices"]) if meta["choices"] else _KINDS[plain[0]]
    # No default here: the one in Config counts.
    return click.option(
        flag_of(section, spec.name), _parameter(section, spec.name), type=kind, default=None, help=meta["doc"] + note
    )
