"""Figures of a plan: what is stored, what a run would train, and its cost judging by past measurements."""

import contextlib
from collections.abc import Sequence
from typing import Any

from pixelpick_ray.checks import splits_in_use
from pixelpick_ray.config.canonical import counted, digest
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.model import FEATURE_FIELDS
from pixelpick_ray.config.networks import features_bytes as network_bytes
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.data.cache import prepare
from pixelpick_ray.data.datasets import known_facts, open_dataset, training_split
from pixelpick_ray.data.weights import normalisation
from pixelpick_ray.errors import DataError
from pixelpick_ray.planning import Plan, Progress
from pixelpick_ray.store import Store
from pixelpick_ray.store.paths import PROVENANCE
from pixelpick_ray.store.records import FitProvenance


def summarise(planned: Plan, progress: Progress, execution: Execution) -> dict[str, Any]:
    """Return the figures of a plan, as `plan --json` prints them; `stored_*` are None if unknown."""
    seconds = fit_seconds(progress, execution)
    found = progress.to_train.values()
    return {
        "experiment": planned.experiment.name,
        "code": list(planned.code),
        "normalise": normalise_lines(planned, execution),
        "trials": len(planned.trials),
        "chains": len(planned.chains),
        "fits": planned.num_fits,
        "fits_unshared": planned.num_fits_unshared,
        "picks": planned.num_picks,
        "answers_per_image": planned.answers_per_image,
        "stored_fits": progress.stored_fits,
        "stored_picks": progress.stored_picks,
        "fits_to_train": len(found),
        "fits_to_train_again": sum(stage.fit_stored for stage, _ in found),
        "fits_after_answers": sum(stage.must_wait for stage, _ in found),
        "fits_diverged": len({stage.identity for row in progress.stages.values() for stage in row if stage.diverged}),
        "features_bytes": features_bytes(planned, execution),
        "epochs_missing": sum(trial.epochs for _, trial in found),
        "seconds_per_fit": seconds,
        "seconds_missing": None if seconds is None else round(seconds * len(found), 1),
    }


def normalise_lines(planned: Plan, execution: Execution) -> list[str]:
    """Say which mean and standard deviation normalise the images of each data set for each network."""
    trials = {(trial.dataset.name, trial.dataset.path, trial.model): trial for trial in planned.trials}
    return list(dict.fromkeys(_normalise_line(trial, execution) for trial in trials.values()))


def _normalise_line(trial: Trial, execution: Execution) -> str:
    facts, name = known_facts(trial.dataset.name), f"{trial.model.backbone} {trial.model.pretrained}"
    with contextlib.suppress(DataError):
        facts = facts or open_dataset(trial.dataset, execution.data_path).facts
    found, wanted = normalisation(trial.model, facts), trial.model.normalised_by
    values = found or facts
    numbers = "" if values is None else f": mean {_three(values.mean)}, standard deviation {_three(values.std)}"
    whose = {"weights": "with its weights' own values", "dataset": f"with the values of {trial.dataset.name}"}
    said = whose[wanted] if isinstance(wanted, str) else "with the experiment's values"
    others = f" (those of {trial.dataset.name}: {_three(facts.mean)}, {_three(facts.std)})" if found and facts else ""
    return f"images for {name} are normalised {said}{numbers}{others}"


def _three(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def features_bytes(planned: Plan, execution: Execution) -> int | None:
    """Bytes that the features of all frozen backbones of a plan take in the cache; None if the data are absent."""
    sizes: dict[str, int] = {}
    for trial in planned.trials:
        if trial.model.fitted_head is None:
            continue
        try:
            dataset = open_dataset(trial.dataset, execution.data_path)
            training = training_split(dataset, trial.dataset)
            for split, size in splits_in_use(planned.experiment, trial, training):
                for view in (None, *(trial.model.views or ())) if split == training else (None,):
                    model = trial.model.seen_in(view)
                    fields = model.model_dump(mode="json", include=FEATURE_FIELDS)
                    seed = trial.seed if model.pretrained == "none" else None
                    where = [trial.dataset.name, trial.dataset.path, split, size.size_spec().as_input()]
                    key = digest([*where, fields, bool(view and view.flip), seed])
                    if key not in sizes:
                        shapes = prepare(dataset, split, size, execution.cache_path).shapes
                        sizes[key] = network_bytes(model, ((int(h), int(w)) for h, w in shapes))
        except DataError:
            return None
    return sum(sizes.values())


def features_line(size: int | None, execution: Execution) -> str:
    """Size and place of the features of frozen backbones, as a line; empty if there are none."""
    return f"features of frozen backbones: {size / 1e9:.1f} GB in {execution.cache_path}" if size else ""


def fit_seconds(progress: Progress, execution: Execution) -> float | None:
    """Mean seconds per stored fit of the plan, evaluation included; None if no fit is stored."""
    store = Store(execution.store)
    keys = {stage.fit for row in progress.stages.values() for stage in row if stage.fit and stage.fit_stored}
    found = (store.files("fit", key, [PROVENANCE]) for key in sorted(keys))
    seconds = [FitProvenance.model_validate_json(files[PROVENANCE]).seconds for files in found if files]
    return round(sum(seconds) / len(seconds), 2) if seconds else None


def cost_line(summary: dict[str, Any]) -> str:
    """Say in one sentence what is stored and what remains to be done."""
    text = stages_line(summary)
    if summary["fits_to_train"]:
        text += f", {counted(summary['epochs_missing'], 'epoch')}"
    if summary["fits_to_train"] and summary["seconds_missing"] is not None:
        text += f", about {counted(round(summary['seconds_missing'] / 60), 'minute')} of one trial's resources"
        text += ", judging by the fits so far"
    return text


def stages_line(summary: dict[str, Any]) -> str:
    """Say how many stages are stored and how many a run would train, as `plan`, `run` and `status` print it."""
    stored, again, waiting = (summary[name] for name in ("stored_fits", "fits_to_train_again", "fits_after_answers"))
    known = f"{stored} of {counted(summary['fits'], 'stage')} stored, "
    text = f"{known if stored is not None else ''}{summary['fits_to_train']} to train"
    if again:
        text += f" ({again} of them again, for weights or measurements that only training provides)"
    if waiting:
        text += f" ({waiting} of them after people have answered)"
    if summary["fits_diverged"]:
        text += f"; {summary['fits_diverged']} without a result, because a training diverged"
    return text
