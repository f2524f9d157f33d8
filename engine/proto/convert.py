"""Settings between vs3r/config.py and the messages of the same names."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

from vs3r.config import Config
from vs3r.engine.proto.layout import field_error
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.errors import InputError

SECTIONS = ("flow", "reconstruct", "vggt", "smooth", "render", "refine", "network")
"""Those of Config that the wire has: encoding is the client's, and Wan works on files only."""

Settings = TypeVar("Settings")


def settings_from(base: Settings, message: Any, *, field: str) -> Settings:
    """`base` with the fields that are set in its message.

    Raises:
        FieldError: a value is out of its bounds.
    """
    given = {spec.name: getattr(message, spec.name) for spec in fields(base) if message.HasField(spec.name)}  # type: ignore[arg-type]
    try:
        return replace(base, **given)  # type: ignore[type-var]
    except InputError as error:
        raise field_error(field, str(error)) from None


def config_from(message: pb.Config) -> Config:
    """The settings of a message; what is not set has its default.

    Raises:
        FieldError: a value is out of its bounds.
    """
    base = Config()
    parts = {s: settings_from(getattr(base, s), getattr(message, s), field=f"config.{s}") for s in SECTIONS}
    return replace(base, **parts)


def config_message(config: Config) -> pb.Config:
    """The message of all settings."""
    message = pb.Config()
    for section in SECTIONS:
        settings = getattr(config, section)
        for spec in fields(settings):
            value = getattr(settings, spec.name)
            if value is not None:
                setattr(getattr(message, section), spec.name, value)
    return message
