"""All paths inside a store, relative to it, with slashes; no other module composes any.

Results are in ``<kind>/<key>/``; the other paths below are not content-addressed.
"""

import contextlib
import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.errors import SpecError

MANIFEST, INPUT, PROVENANCE = "manifest.json", "input.json", "provenance.json"
# A fit's weights are next to its files, have a digest of their own, and may be removed at any time. Those that only
# one run needs are marked with its name.
WEIGHTS, WEIGHTS_DIGEST, WEIGHTS_OF_RUN = "weights.safetensors", "weights.json", "weights.run"
SECRET = re.compile(r"key|secret|token|password|signature|credential", re.IGNORECASE)  # in query parameter names
DAMAGED = "damaged"
EXPERIMENTS = "experiments"
LEASES = "leases"


def absolute(location: str) -> str:
    """Make the location of a store valid in any working directory. Raises SpecError as `checked` does."""
    location = checked(location)
    return location if "://" in location else str(absolute_path(Path(location)))


def absolute_path(path: Path) -> Path:
    """Make a path absolute, with the name that the user's shell has for the working directory.

    Links are not resolved, because they may lead elsewhere on another machine.
    """
    here = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if os.path.isabs(here) and os.path.samefile(here, os.curdir):
            return Path(here) / path
    return Path.cwd() / path


def checked(location: str) -> str:
    """Expand ``~`` in the location of a store. Raises SpecError for an address with too few slashes."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)", location):
        scheme, _, rest = location.partition(":/")
        raise SpecError(f"--store {location}: give {scheme}://{rest} for object storage, or ./{location} for a folder")
    return location if "://" in location else os.path.expanduser(location)


def without_credentials(location: str) -> str:
    """Strip user names, passwords and keys from the location of a store, for display."""
    parts = urlsplit(location)
    if "://" not in location or not parts.netloc:
        return location
    query = [(name, value) for name, value in parse_qsl(parts.query) if not SECRET.search(name)]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=urlencode(query)))


def result(kind: str, key: str, file: str = "") -> str:
    """Path of a result, or of a file in it."""
    return f"{kind}/{key}/{file}" if file else f"{kind}/{key}"


def unfinished(fit_key: str) -> str:
    """Progress of an unfinished training."""
    return f"unfinished/{fit_key}"


def diverged(fit_key: str) -> str:
    """Record of a training that diverged."""
    return f"diverged/{fit_key}.json"


def attempts(chain: str, file: str = "") -> str:
    """Folder of the tracebacks of a chain's failed attempts, or one of them."""
    return f"attempts/{chain}/{file}" if file else f"attempts/{chain}"


def damaged(name: str, file: str = "") -> str:
    """Path of something set aside as damaged, or of a file in it."""
    return f"{DAMAGED}/{name}/{file}" if file else f"{DAMAGED}/{name}"


def lease(name: str) -> str:
    """Path of the lease on something, by kind and key, such as "fit-KEY"."""
    return f"{LEASES}/{name}"


def run_lease(experiment: Experiment) -> str:
    """Prefix of the names of the leases of an experiment's runs, after their kind, "run"."""
    return f"{experiment.identity()[:16]}-"


def experiment_folder(experiment: Experiment) -> str:
    """Folder of an experiment's records."""
    return f"{EXPERIMENTS}/{experiment.name}-{experiment.identity()[:16]}"


def experiment_record(folder: str) -> str:
    """Record of what was run under an experiment's name, given its folder."""
    return f"{folder}/experiment.json"


def data_warnings(folder: str) -> str:
    """Record of the data warnings of an experiment's last run, given its folder."""
    return f"{folder}/warnings.json"


def chain_record(experiment: Experiment, chain: str) -> str:
    """Record of a chain's progress in an experiment."""
    return f"{experiment_folder(experiment)}/chains/{chain}.json"


def found(experiment: Experiment, name: str) -> str:
    """Experiment file with what a search found, by its name."""
    return f"{experiment_folder(experiment)}/found/{name}.yaml"


def samples(experiment: Experiment) -> str:
    """Folder of the records of a search's samples."""
    return f"{experiment_folder(experiment)}/samples"


def answers(key: str, journal: str = "") -> str:
    """Folder of people's answers about one set of images, or a journal in it."""
    return f"answers/{key}/{journal}" if journal else f"answers/{key}"


def answered_images(key: str) -> str:
    """Folder of the digests of images that people were asked about; older stores have a single record instead."""
    return f"{answers(key)}/images"


def record(folder: str, name: str) -> str:
    """Path of a record in a folder, by its name without suffix."""
    return f"{folder}/{name}.json"


def source(digest: str) -> str:
    """Record of the source of a part loaded from a file, by its digest."""
    return f"sources/{digest}.json"


def probe(mark: str) -> str:
    """Temporary record with which `doctor` checks that nodes share a store."""
    return f"doctor/{mark}.json"
