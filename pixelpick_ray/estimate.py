"""The figures of a plan: what is stored, what is missing, and what that costs as measured so far."""

from typing import Any

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.plan import Plan, Progress
from pixelpick_ray.store import Store


def summarise(planned: Plan, progress: Progress, execution: Execution) -> dict[str, Any]:
    """The figures of a plan, as `plan --json` prints them; `stored_*` are None where they cannot be known."""
    seconds = fit_seconds(planned, progress, execution)
    fits, stored = planned.num_fits, progress.stored_fits
    missing = fits - (stored or 0)
    return {
        "experiment": planned.experiment.name,
        "trials": len(planned.trials),
        "chains": len(planned.chains),
        "fits": fits,
        "fits_unshared": planned.num_fits_unshared,
        "picks": planned.num_picks,
        "answers_per_image": planned.answers_per_image,
        "stored_fits": stored,
        "stored_picks": progress.stored_picks,
        "epochs_missing": sum(_epochs_missing(planned, progress).values()),
        "seconds_per_fit": seconds,
        "seconds_missing": None if seconds is None else round(seconds * missing, 1),
    }


def fit_seconds(planned: Plan, progress: Progress, execution: Execution) -> float | None:
    """Mean seconds of the plan's stored fits, evaluation included; None before the first."""
    store = Store(execution.store)
    keys = {stage.fit for row in progress.stages.values() for stage in row if stage.fit_stored}
    seconds = [store.read_record(f"fit/{key}/provenance.json")["seconds"] for key in sorted(filter(None, keys))]
    return round(sum(seconds) / len(seconds), 2) if seconds else None


def _epochs_missing(planned: Plan, progress: Progress) -> dict[str, int]:
    """Epochs still to train by fit; a fit whose key is unknown counts as missing."""
    missing: dict[str, int] = {}
    for chain in planned.chains:
        known = progress.stages.get(chain.id, [])
        for stage, fit in enumerate(chain.fits):
            if not (stage < len(known) and known[stage].fit_stored):
                missing[fit] = chain.trial.train.epochs
    return missing


def cost_line(summary: dict[str, Any]) -> str:
    """What is stored, and what is still to be done, as a sentence."""
    stored = summary["stored_fits"]
    left = summary["fits"] - (stored or 0)
    known = f"{stored} of {summary['fits']} stages are stored, " if stored is not None else ""
    text = f"{known}{left} to train, {summary['epochs_missing']} epochs"
    if summary["seconds_missing"] is not None:
        text += f", about {summary['seconds_missing'] / 60:.0f} minutes of one trial's resources as measured so far"
    return text
