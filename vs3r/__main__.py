"""The `vs3r` program, also as `python -m vs3r`."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Entry point; an interrupt while the command line is still being loaded ends like any other."""
    try:
        from vs3r.engine.cli import main as command_line
    except KeyboardInterrupt:
        sys.stderr.write("vs3r: error: interrupted\n")
        sys.exit(130)
    command_line()


if __name__ == "__main__":
    main()
