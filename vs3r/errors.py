"""What can go wrong, and what to tell the user about it.

Vs3rError                 anything a user can act on; the command line prints it as one line and exits with 1
├── InputError            the given file or frame cannot be used (also an argument that makes no sense)
│   ├── MediaError        a video file cannot be opened, decoded, encoded or written
│   ├── TrackError        a .vs3r file is truncated, foreign, or of another version
│   └── ShapeError        an array has the wrong shape, dtype or device
├── BackendError          a backend asked for by name cannot run on this machine
└── OutputError           the result cannot be written (disk full, no permission, the output is the input)

A message says what was expected, what came, and what to do.
"""

from __future__ import annotations


class Vs3rError(Exception):
    """Base of every error that a user can act on."""


class InputError(Vs3rError):
    """The given file, frame or option cannot be used."""


class MediaError(InputError):
    """A video file cannot be opened, decoded or encoded."""


class TrackError(InputError):
    """A .vs3r track file cannot be used."""


class ShapeError(InputError):
    """An array has the wrong shape, dtype or device."""


class BackendError(Vs3rError):
    """A backend asked for by name cannot run on this machine."""


class OutputError(Vs3rError):
    """The result cannot be written."""
