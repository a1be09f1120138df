"""The one error type that users see: it names the value, the rule and the way out."""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any


class UserError(Exception):
    """Something the user gave cannot be used.

    The command line prints the message alone and exits with status 2; every other exception is a defect of ours and
    keeps its traceback. The message has three parts: the value, the rule it broke, and the way out.
    """


def suggestion(name: str, known: Iterable[str]) -> str:
    """`did you mean 'nano'? known: base, nano, tiny`, for a name that is not among the known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + "known: " + ", ".join(known)


def run_cli(
    run: Callable[[Any], Any], config_class: type, args: Sequence[str] | None = None, prog: str | None = None
) -> None:
    """Parses a stage's configuration from the command line and runs it; a `UserError` ends it with status 2."""
    import tyro

    description = sys.modules[run.__module__].__doc__
    config = tyro.cli(config_class, args=args, prog=prog, description=description)
    report_errors(lambda: run(config))


def report_errors(action: Callable[[], Any]) -> None:
    """Runs `action`; prints a `UserError` as one line on stderr and exits with status 2."""
    try:
        action()
    except UserError as error:
        print(f"septet: error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print("septet: error: the disk is full; free space and run the same command again to go on", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("septet: stopped; run the same command again to go on", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
