"""How much each setting decides about the score, by PED-ANOVA (Watanabe, Bansal and Hutter 2023) as Optuna has it."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pixelpick_ray.config.canonical import canonical_json
from pixelpick_ray.config.search import DomainSpec
from pixelpick_ray.report.parts import Part, Prose, Table
from pixelpick_ray.report.search_tables import Findings, count_words
from pixelpick_ray.report.tables import percent_text
from pixelpick_ray.search.journal import Sample

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

FEWEST = 8  # samples
# Optuna's own tenth of 20 samples is two of them, and they tell nothing: where one of three settings decided the score,
# the best third named it most surely of what was tried, from 8 to 100 samples.
BEST_SHARE, FEWEST_BEST = 1 / 3, 5


def importance_parts(found: Findings) -> tuple[Part, ...]:
    """Each setting's share in what tells good scores from others, at the first level and at the last, or why not."""
    if len(found.paths) < 2:
        return (Prose((f"Only {found.paths[0]} is searched, so there is nothing to divide the importance among.",)),)
    groups = _groups(found)
    shares = {head: importance(found.search.spec.space, scored) for head, scored in groups.items()}
    known = {head: share for head, share in shares.items() if share is not None}
    reasons = tuple(_reason(head, len(scored)) for head, scored in groups.items() if shares[head] is None)
    if not known:
        return (Prose(reasons),)
    rows = tuple((path, *(percent_text(share[path], float("nan")) for share in known.values())) for path in found.paths)
    caption = (
        "Share of each setting, in percent, in what sets the best third of the samples (of few, the best five or half) "
        "apart, by PED-ANOVA (Watanabe, Bansal and Hutter 2023)."
    )
    notes = (*reasons, _WARNING, *((_SURVIVORS,) if len(known) > 1 else ()))
    return (Table(caption, ("setting", *known), rows, "l" + "r" * len(known), notes),)


# Where a choice of two to four values decided alone, and two ranges did nothing, it came first in two thirds of the
# searches of 20 samples, in nearly all of 40 and in all of 100.
_WARNING = (
    "A rough guide: the shares of a column come to 100 % even where no setting matters, and of 20 samples even a "
    "setting that decides alone does not always come first."
)
_SURVIVORS = "Samples reach the last level by being good at those before it, which hides what these have decided."


def _groups(found: Findings) -> dict[str, list[tuple[Mapping[str, Any], float]]]:
    """Values and scores at the first level and at the last, by what a column is called; one where these are one."""
    levels, finished = found.search.levels, found.of("finished")
    groups: dict[int, list[Sample]] = {1: [one for one in found.samples if one.reports], len(levels): finished}
    return {
        f"at {levels[number - 1].label} ({count_words(len(samples), 'sample')})": [
            (sample.values, sample.reports[number - 1].score) for sample in samples
        ]
        for number, samples in groups.items()
    }


def _reason(head: str, number: int) -> str:
    why = f"fewer than {FEWEST}" if number < FEWEST else "their scores do not depend on any setting"
    return f"No importance {head}: {why}."


def importance(
    space: Mapping[str, DomainSpec], scored: Sequence[tuple[Mapping[str, Any], float]]
) -> dict[str, float] | None:
    """The share of each setting; None of fewer than FEWEST samples, and where none tells the best from the others."""
    if len(scored) < FEWEST:
        return None
    import optuna  # slow

    best = max(BEST_SHARE, min(0.5, FEWEST_BEST / len(scored)))
    verbosity = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would tell of the study
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best)
            found = evaluator.evaluate(_study(space, scored), params=list(space))
    finally:
        optuna.logging.set_verbosity(verbosity)
    total = sum(found[path] for path in space)
    return {path: found[path] / total for path in space} if total > 0 else None


def _study(space: Mapping[str, DomainSpec], scored: Sequence[tuple[Mapping[str, Any], float]]) -> "Study":
    """The samples as Optuna has them."""
    import optuna

    distributions = {path: _distribution(domain) for path, domain in space.items()}
    study = optuna.create_study(direction="maximize")
    for values, score in scored:
        params = {path: _parameter(domain, values[path]) for path, domain in space.items()}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=score))
    return study


def _distribution(domain: DomainSpec) -> "BaseDistribution":
    """A domain as Optuna has it; what is chosen from is text there, since it may be a list or a mapping."""
    from optuna import distributions

    if domain.kind == "randint":
        return distributions.IntDistribution(*domain.values)
    if domain.is_range:
        low, high = domain.values
        return distributions.FloatDistribution(low, high, log=domain.kind == "loguniform")
    return distributions.CategoricalDistribution([canonical_json(value) for value in domain.values])


def _parameter(domain: DomainSpec, value: Any) -> Any:
    """A value as Optuna has it."""
    return value if domain.is_range else canonical_json(domain.values[domain.values.index(value)])
