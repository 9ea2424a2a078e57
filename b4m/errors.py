"""The one exception that a user meets."""


class B4MError(Exception):
    """Bad input, told in one sentence: what is wrong, where, and what to do.

    The command line prints it without a stack trace and exits with status 2. Everything else that
    escapes from the library is a defect of the library.
    """
