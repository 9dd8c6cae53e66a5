"""The one exception meant for a person."""


class UserError(Exception):
    """Bad input: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence without a traceback and exits with code 2.
    """
