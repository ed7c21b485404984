"""``Store``: content-addressed results, records and leases in a folder or on object storage."""

from pixelpick_ray.store.paths import absolute, absolute_path, experiment_folder, run_lease
from pixelpick_ray.store.results import Store

__all__ = ["Store", "absolute", "absolute_path", "experiment_folder", "run_lease"]
