"""Every path inside a store, relative to it, with slashes. Nothing else composes one.

Results are ``<kind>/<key>/``; what is not content-addressed lies under the other names below.
"""

import contextlib
import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.errors import SpecError

MANIFEST, INPUT, PROVENANCE = "manifest.json", "input.json", "provenance.json"
# The weights of a fit lie beside its files, are checked by themselves, and may be removed at any time. Those that a run
# needs only for itself are marked with its name.
WEIGHTS, WEIGHTS_DIGEST, WEIGHTS_OF_RUN = "weights.safetensors", "weights.json", "weights.run"
SECRET = re.compile(r"key|secret|token|password|signature|credential", re.IGNORECASE)  # in the name of a setting
DAMAGED = "damaged"
EXPERIMENTS = "experiments"
LEASES = "leases"


def absolute(location: str) -> str:
    """The location of a store for a process that runs in another folder."""
    location = checked(location)
    return location if "://" in location else str(absolute_path(Path(location)))


def absolute_path(path: Path) -> Path:
    """A path that starts in this folder, whose name is the one that the user sees, as an absolute one.

    No link is resolved: what a link leads to may lie elsewhere on another machine.
    """
    here = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if os.path.isabs(here) and os.path.samefile(here, os.curdir):
            return Path(here) / path
    return Path.cwd() / path


def checked(location: str) -> str:
    """The location of a store, with the home folder for ``~``. SpecError for an address with too few slashes."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)", location):
        scheme, _, rest = location.partition(":/")
        raise SpecError(f"--store {location}: give {scheme}://{rest} for object storage, or ./{location} for a folder")
    return location if "://" in location else os.path.expanduser(location)


def without_credentials(location: str) -> str:
    """The location of a store, as it may be shown: without a name, a password or a key in its address."""
    parts = urlsplit(location)
    if "://" not in location or not parts.netloc:
        return location
    query = [(name, value) for name, value in parse_qsl(parts.query) if not SECRET.search(name)]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=urlencode(query)))


def result(kind: str, key: str, file: str = "") -> str:
    """A result, or a file of it."""
    return f"{kind}/{key}/{file}" if file else f"{kind}/{key}"


def unfinished(fit_key: str) -> str:
    """What a fit in training needs to go on."""
    return f"unfinished/{fit_key}"


def diverged(fit_key: str) -> str:
    """How a training went that has no result."""
    return f"diverged/{fit_key}.json"


def attempts(chain: str, file: str = "") -> str:
    """The tracebacks of a chain's failed attempts, or one of them."""
    return f"attempts/{chain}/{file}" if file else f"attempts/{chain}"


def damaged(name: str, file: str = "") -> str:
    """Something that was set aside, or a file of it."""
    return f"{DAMAGED}/{name}/{file}" if file else f"{DAMAGED}/{name}"


def lease(name: str) -> str:
    """Who computes something now, by its kind and name, such as "fit-KEY"."""
    return f"{LEASES}/{name}"


def run_lease(experiment: Experiment) -> str:
    """How the names of the leases of an experiment's runs begin, after their kind, "run"."""
    return f"{experiment.identity()[:16]}-"


def experiment_folder(experiment: Experiment) -> str:
    """The folder of an experiment's records."""
    return f"{EXPERIMENTS}/{experiment.name}-{experiment.identity()[:16]}"


def experiment_record(folder: str) -> str:
    """What was run under the name of an experiment, given its folder."""
    return f"{folder}/experiment.json"


def data_warnings(folder: str) -> str:
    """What was probably wrong with the data of an experiment when it was run, given its folder."""
    return f"{folder}/warnings.json"


def chain_record(experiment: Experiment, chain: str) -> str:
    """How far a chain of an experiment has come."""
    return f"{experiment_folder(experiment)}/chains/{chain}.json"


def found(experiment: Experiment, name: str) -> str:
    """The experiment that a search has found, by its name, as a file that can be run."""
    return f"{experiment_folder(experiment)}/found/{name}.yaml"


def samples(experiment: Experiment) -> str:
    """The folder of the records of a search's samples."""
    return f"{experiment_folder(experiment)}/samples"


def answers(key: str, journal: str = "") -> str:
    """The folder of people's answers about one set of images, or a journal in it."""
    return f"answers/{key}/{journal}" if journal else f"answers/{key}"


def answered_images(key: str) -> str:
    """The folder of what images looked like when people were asked about them; older stores have one record instead."""
    return f"{answers(key)}/images"


def record(folder: str, name: str) -> str:
    """A record in a folder, by its name without suffix."""
    return f"{folder}/{name}.json"


def source(digest: str) -> str:
    """The source of a part that came from a file, by its digest."""
    return f"sources/{digest}.json"


def probe(mark: str) -> str:
    """A record that `doctor` writes to see whether nodes share a store, and removes again."""
    return f"doctor/{mark}.json"
