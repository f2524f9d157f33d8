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


def flag_of(section: str, name: str) -> str:
    """The flag of a setting: --smoothness for smooth.smoothness; the backend of a section is called as the section."""
    return "--" + (section if name == "backend" else name).replace("_", "-")


def config_options(*sections: str) -> Callable[[Command], Command]:
    """A decorator that adds the options of some sections of Config to a click command."""

    def decorate(command: Command) -> Command:
        for section in reversed(sections):
            settings = getattr(Config(), section)
            annotations = typing.get_type_hints(type(settings))
            for spec in reversed(fields(settings)):
                command = _option(section, spec, annotations[spec.name])(command)
        return command

    return decorate


def config_from(values: dict[str, Any]) -> Config:
    """Build a Config from what click parsed; sections that a command lacks keep their defaults.

    Raises:
        InputError: a value is out of its bounds.
    """
    parts = {}
    for section in (spec.name for spec in fields(Config)):
        settings = type(getattr(Config(), section))
        given = {s.name: values.get(_parameter(section, s.name)) for s in fields(settings)}
        parts[section] = settings(**{name: value for name, value in given.items() if value is not None})
    return Config(**parts)


def _parameter(section: str, name: str) -> str:
    return f"{section}__{name}"


def _option(section: str, spec: Field[Any], annotation: Any) -> Callable[[Command], Command]:
    meta = spec.metadata
    plain = [t for t in typing.get_args(annotation) if t is not types.NoneType] or [annotation]
    kind = (
        click.Choice(meta["choices"])
        if meta["choices"]
        else {int: click.INT, float: click.FLOAT, str: click.STRING}[plain[0]]
    )
    notes = []
    if meta["low"] is not None and meta["high"] is not None:
        notes.append(f"{meta['low']:g} to {meta['high']:g}")
    if spec.default is not None:
        notes.append(f"default {spec.default}")
    note = f"  [{'; '.join(notes)}]" if notes else ""
    # No default here: the one in Config counts.
    return click.option(
        flag_of(section, spec.name), _parameter(section, spec.name), type=kind, default=None, help=meta["doc"] + note
    )
