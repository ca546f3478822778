"""The command line as a program: `gpt2kit` and `python -m gpt2kit`."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command line and exit with its code."""
    # Until the commands are imported, Ctrl-C ends the process here and not with a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from gpt2kit.cli import main as run

    run()


if __name__ == "__main__":
    main()
