"""The one exception that means: the input was wrong, here is what would be right."""


class UserError(Exception):
    """Bad input.

    The message is one line that names the thing, what is wrong with it, and what would be right. The command
    line prints it without a traceback and exits with code 2.
    """
