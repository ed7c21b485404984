"""The Ray cluster of a run: joined or started, and left as found."""

import contextlib
from collections.abc import Iterator
from typing import Any

import ray

from pixelpick_ray.errors import SpecError
from pixelpick_ray.spec.execution import Execution, local_cpus


@contextlib.contextmanager
def joined(execution: Execution) -> Iterator[None]:
    """Join the cluster at the address, or start one on this machine; left as found."""
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "ignore_reinit_error": False}
    if execution.address:
        options["address"] = execution.address
    else:
        options |= {"include_dashboard": False, "num_cpus": local_cpus(), "address": "local"}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SpecError(
            f"--address {execution.address}: no Ray cluster could be joined or started ({error})"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
