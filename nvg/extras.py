"""What a plain `pip install` leaves out: the extras of pyproject.toml, and the one line that asks for them."""

from __future__ import annotations

import importlib.util

from nvg.errors import MissingPackage

# extra -> the packages that its commands cannot start without: the module that is imported, the name that people know.
PACKAGES = {
    "train": {"ray": "Ray", "mlflow": "MLflow", "pyarrow": "PyArrow"},
    "eval": {"torchmetrics": "TorchMetrics"},
    "serve": {"ray": "Ray", "fastapi_offline": "FastAPI"},
    "mlflow": {"mlflow": "MLflow"},
    "s3": {"s3fs": "s3fs"},
    "hub": {"huggingface_hub": "huggingface_hub"},
    "diffusers": {"diffusers": "diffusers"},
}
STORES = {"s3": "s3", "s3a": "s3", "hf": "hub"}  # scheme of a URL -> extra


def require(user: str, *extras: str) -> None:
    """Raises MissingPackage where a package of the extras is not installed. user: what needs it, which the message
    begins with."""
    for extra in extras:
        for module, name in PACKAGES[extra].items():
            if importlib.util.find_spec(module) is None:
                raise MissingPackage(f"{user} needs {name}: pip install 'nvg[{','.join(extras)}]'")


def require_store(url: str) -> None:
    """Raises MissingPackage where the client of a URL's store is an extra that is not installed."""
    scheme = str(url).partition("://")[0]
    if scheme in STORES:
        require(str(url), STORES[scheme])
