"""Every error that a person can mend: the message is one line that names the key, the file or the folder, and what to
do. Commands print it without a traceback.

Each also derives from the built-in class that its callers would expect (ValueError, OSError, ...).
"""

from __future__ import annotations

import traceback


class NvgError(Exception):
    """The base. final: whether trying again would give the same, so that nothing retries it."""

    final: bool = True


class ConfigError(NvgError, ValueError):
    """A configuration that cannot be used; the message names the key and what to do."""


class DataError(NvgError, ValueError):
    """Images or tokens that cannot be used as configured; the message names the key or the file and what to do."""


class CheckpointError(NvgError, ValueError):
    """An artifact's folder that cannot be used; the message names the file and what to do."""


class NotComparable(NvgError, ValueError):
    """Evaluations of different protocols; the message names the first that differs and in what."""


class MissingPackage(NvgError, ImportError):
    """An extra that is not installed; the message names who needs it and the pip command."""


class WeightsError(NvgError, FileNotFoundError):
    """Published weights that a configuration asks for and that cannot be used; the message names the key."""


class OutputBusy(NvgError, RuntimeError):
    """Another job is at work on the same artifact; the message names both."""


class StepFailed(NvgError, RuntimeError):
    """A step of the pipeline that ended for good; the message names it, the cause and what is kept."""


class TrainingDiverged(NvgError, RuntimeError):
    """The loss exploded, or it or a gradient is no finite number any more."""


class DiskFull(NvgError, OSError):
    """No space is left where something is written; the message names the path."""


class StorageError(NvgError, OSError):
    """A store that cannot be reached or refuses; the message names the URL and what to look at."""

    final = False  # stores come back


class Unexpected(NvgError, RuntimeError):
    """An error of another library, or a fault of ours, that would come again; the message begins with its type."""


# Errors of what the code was given. A lost node, a cut connection or a slow store gives others: those of Ray, OSError,
# and the RuntimeError of torch's collectives.
WOULD_COME_AGAIN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
    ValueError,
)


def final_error(error: Exception) -> NvgError | None:
    """The error to end a job with where trying again would give the same, whoever raised it; None where a retry may
    help. Prints the traceback of an error that is none of this project's own."""
    if isinstance(error, NvgError):
        return error if error.final else None
    status = getattr(error, "get_http_status_code", None)  # MLflow's errors: 429 and those from 500 on pass
    if not (isinstance(error, WOULD_COME_AGAIN) if status is None else 400 <= status() < 500 and status() != 429):
        return None
    traceback.print_exception(error)
    return Unexpected(" ".join(f"{type(error).__name__}: {error}".split()))
