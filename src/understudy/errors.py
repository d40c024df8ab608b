"""What went wrong, in one line that says what to do next. Front ends print the message and exit with `exit_status`."""


def first_line(error: BaseException) -> str:
    """What an error of somebody else says, without what follows; its kind, if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")


class UnderstudyError(Exception):
    """Something could not be done (exit status 1)."""

    exit_status = 1


class UsageError(UnderstudyError):
    """A mistake the user can mend: an unknown option, a wrong value (exit status 2)."""

    exit_status = 2


class CheckpointError(UnderstudyError):
    """The source model cannot be read: missing, truncated, gated, or of an unsupported kind."""


class StoreError(UnderstudyError):
    """The prepared model cannot be read or written."""


class TransferError(UnderstudyError):
    """Weights did not arrive. Generation stops; wrong bytes never become text."""
