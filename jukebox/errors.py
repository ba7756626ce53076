"""Errors that a user can mend: shown as one message, without a traceback (see parallel/launch.py, `guard`)."""


class UserError(Exception):
    """A fault outside our code. The message names the flag or file to change and the cure."""

    exit_code = 1


class UsageError(UserError):
    """The command line is wrong."""

    exit_code = 2


class HparamsError(UsageError):
    """A hyperparameter or preset is unknown, mistyped or out of range."""


class DataError(UserError):
    """Audio, metadata or labels cannot be used."""


class CheckpointError(UserError):
    """A checkpoint cannot be read, or belongs to another model."""


class StoreError(UserError):
    """A code store is unfinished, damaged, or made by another model."""


class LaunchError(UserError):
    """The processes of this run do not fit together."""


class LockedError(UserError):
    """Another run holds this folder."""


class WriteFailed(UserError):
    """A file could not be written; nothing stands under its final name."""


class OutOfSpace(WriteFailed):
    """No room for a file; the previous one is intact."""
