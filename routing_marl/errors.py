"""The one exception that means: the input was wrong, here is what would be right; and any other one in a line."""

import traceback
from pathlib import Path


class UserError(Exception):
    """Bad input.

    The message is one line that names the thing, what is wrong with it, and what would be right. The command
    line prints it without a traceback and exits with code 2.
    """


def described(error: BaseException) -> str:
    """An error in one line: what it is and says, and, unless it is about bad input, which line of code raised it."""
    line = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, UserError) or not frames:
        return line
    return f"{line} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
