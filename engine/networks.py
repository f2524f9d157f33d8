"""The reconstructor as the engine runs it: its networks as the config says."""

from __future__ import annotations

from vs3r.config import Config
from vs3r.export.runtime import prepare_with
from vs3r.reconstruct import Reconstructor
from vs3r.reconstruct import make_reconstructor as make_plain
from vs3r.types import PictureFormat


def make_reconstructor(config: Config, fmt: PictureFormat) -> Reconstructor:
    """The reconstructor that the config names, for pictures of the given format.

    Raises:
        InputError: weights are missing or wrong.
        BackendError: a way to run networks that was asked for cannot be gone here.
    """
    return make_plain(config, fmt, prepare_with(config.network))
