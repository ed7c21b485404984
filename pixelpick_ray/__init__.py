"""Distributed experiment runner for PixelPick (Shin, Xie and Albanie, 2021) on Ray Tune; `api.py` is the Python API."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Public names and the modules that define them; imported on first access.
_PUBLIC = {
    **dict.fromkeys(("load", "plan", "register", "results", "run"), "pixelpick_ray.api"),
    **dict.fromkeys(("SpecError", "DataError", "RunError"), "pixelpick_ray.errors"),
    "Experiment": "pixelpick_ray.config.experiment",
    "Strategy": "pixelpick_ray.active.acquisition",
    "OracleRequest": "pixelpick_ray.active.oracle",
    "Format": "pixelpick_ray.annotate.exchange",
    **dict.fromkeys(("Dataset", "DatasetFacts", "FileDataset"), "pixelpick_ray.data.dataset"),
}
__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from pixelpick_ray.active.acquisition import Strategy as Strategy
    from pixelpick_ray.active.oracle import OracleRequest as OracleRequest
    from pixelpick_ray.annotate.exchange import Format as Format
    from pixelpick_ray.api import load, plan, register, results, run  # noqa: F401
    from pixelpick_ray.config.experiment import Experiment as Experiment
    from pixelpick_ray.data.dataset import Dataset, DatasetFacts, FileDataset  # noqa: F401
    from pixelpick_ray.errors import DataError, RunError, SpecError  # noqa: F401


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
