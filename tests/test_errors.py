"""Which errors are tried again: those that a lost node or a store that is away can cause, and no others."""

from __future__ import annotations

import pytest

from nvg import errors
from nvg.errors import ConfigError, StorageError, Unexpected, final_error
from pipelines import run


def of_mlflow(code: str) -> Exception:
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2

    return MlflowException(f"{code}\nat length", error_code=getattr(databricks_pb2, code))


def of_ray() -> Exception:
    from ray.exceptions import WorkerCrashedError

    return WorkerCrashedError()


AGAIN = [
    lambda: ConfigError("a key"),
    lambda: errors.DiskFull("a disk"),
    lambda: ValueError("a value"),
    lambda: KeyError("a name"),
    lambda: TypeError("a type"),
    lambda: ZeroDivisionError("by 0"),
    lambda: ImportError("a module"),
    lambda: NotImplementedError("this"),
    lambda: of_mlflow("INVALID_PARAMETER_VALUE"),
    lambda: of_mlflow("RESOURCE_ALREADY_EXISTS"),
    lambda: of_mlflow("PERMISSION_DENIED"),
    lambda: of_mlflow("RESOURCE_DOES_NOT_EXIST"),
]
PASSES = [
    lambda: StorageError("a store"),
    lambda: ConnectionError("cut"),
    lambda: TimeoutError("slow"),
    lambda: OSError("a device"),
    lambda: RuntimeError("[gloo] Connection closed by peer"),
    lambda: of_mlflow("INTERNAL_ERROR"),
    lambda: of_mlflow("TEMPORARILY_UNAVAILABLE"),
    lambda: of_mlflow("REQUEST_LIMIT_EXCEEDED"),
    of_ray,
]


def step_that_raises(error: Exception, monkeypatch: pytest.MonkeyPatch) -> Exception | None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(run, "run_step", fail)
    return run.try_step("tokens", None, {}, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", AGAIN, ids=lambda make: repr(make()))
def test_an_error_that_would_come_again_ends_a_step_at_once(make, monkeypatch: pytest.MonkeyPatch) -> None:
    error = make()
    ended = step_that_raises(error, monkeypatch)
    assert ended is final_error(error) or isinstance(ended, Unexpected)
    assert ended is not None and ended.final and "\n" not in str(ended)  # type: ignore[attr-defined]
    assert str(ended) == str(error) or str(ended).startswith(f"{type(error).__name__}: ")


@pytest.mark.parametrize("make", PASSES, ids=lambda make: repr(make()))
def test_an_error_that_may_pass_is_raised_so_that_ray_tries_again(make, monkeypatch: pytest.MonkeyPatch) -> None:
    error = make()
    assert final_error(error) is None
    with pytest.raises(type(error)):
        step_that_raises(error, monkeypatch)
