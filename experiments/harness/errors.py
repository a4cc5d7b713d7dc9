"""Errors that end a program early, with messages and exit codes for its user."""

import contextlib
import os
import sys
from collections.abc import Iterator

INTERRUPTED = "interrupted: finished stages are kept, and the same command continues from them"
DIVERGED = 3
"""Exit code of a complete run in which the training of some seeds diverged."""


class UsageError(Exception):
    """A mistake that the user can correct. The message is one line."""


@contextlib.contextmanager
def exit_codes(interrupted: str = INTERRUPTED) -> Iterator[None]:
    """Print errors that a user can correct in one line, with exit code 2; an interruption has exit code 130."""
    try:
        yield
    except UsageError as error:
        _leave(f"error: {error}", 2)
    except KeyboardInterrupt:
        _leave(interrupted, 130)
    except BrokenPipeError:
        # The program that reads the output has ended, as in `--help | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        _leave(f"error: {error.filename or 'a file'}: {error.strerror or error}", 2)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _leave("error: not enough memory: use a smaller --batch-seeds or fewer --num-pairs", 2)


def _leave(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    raise SystemExit(code) from None
