"""Importance of settings for the score, by Optuna's PED-ANOVA (Watanabe, Bansal and Hutter, 2023)."""

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
# Optuna's default, the best tenth, is just two of 20 samples. In simulations with 8 to 100 samples where one of three
# settings decided the score, the best third identified it most reliably.
BEST_SHARE, FEWEST_BEST = 1 / 3, 5


def importance_parts(found: Findings) -> tuple[Part, ...]:
    """Tabulate the importance of each setting at the first and the last level, or say why it is unknown."""
    if len(found.paths) < 2:
        return (Prose((f"Only {found.paths[0]} is searched, so there is no importance to compare.",)),)
    groups = _groups(found)
    shares = {head: importance(found.search.spec.space, scored) for head, scored in groups.items()}
    known = {head: share for head, share in shares.items() if share is not None}
    reasons = tuple(_reason(head, len(scored)) for head, scored in groups.items() if shares[head] is None)
    if not known:
        return (Prose(reasons),)
    rows = tuple((path, *(percent_text(share[path], float("nan")) for share in known.values())) for path in found.paths)
    caption = (
        "Importance of each setting, in percent, for being among the best third of the samples (if there are few, the "
        "best five or half), by PED-ANOVA (Watanabe, Bansal and Hutter, 2023)."
    )
    notes = (*reasons, _WARNING, *((_SURVIVORS,) if len(known) > 1 else ()))
    return (Table(caption, ("setting", *known), rows, "l" + "r" * len(known), notes),)


# In simulations where a choice of two to four values alone decided the score and two ranges did nothing, it came first
# in two thirds of the searches with 20 samples, in nearly all with 40 and in all with 100.
_WARNING = (
    "A rough guide: a column adds up to 100 % even if no setting matters, and with 20 samples even a setting that "
    "alone decides the score does not always come first."
)
_SURVIVORS = "Only samples that did well at earlier levels reach the last one, which hides what was decided at those."


def _groups(found: Findings) -> dict[str, list[tuple[Mapping[str, Any], float]]]:
    """Values and scores at the first and the last level, by column name; one group if there is only one level."""
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
    """Return each setting's share; None for fewer than FEWEST samples, or if no setting separates the best ones."""
    if len(scored) < FEWEST:
        return None
    import optuna  # slow

    best = max(BEST_SHARE, min(0.5, FEWEST_BEST / len(scored)))
    verbosity = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # otherwise it announces the study
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best)
            found = evaluator.evaluate(_study(space, scored), params=list(space))
    finally:
        optuna.logging.set_verbosity(verbosity)
    total = sum(found[path] for path in space)
    return {path: found[path] / total for path in space} if total > 0 else None


def _study(space: Mapping[str, DomainSpec], scored: Sequence[tuple[Mapping[str, Any], float]]) -> "Study":
    """The samples as an Optuna study."""
    import optuna

    distributions = {path: _distribution(domain) for path, domain in space.items()}
    study = optuna.create_study(direction="maximize")
    for values, score in scored:
        params = {path: _parameter(domain, values[path]) for path, domain in space.items()}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=score))
    return study


def _distribution(domain: DomainSpec) -> "BaseDistribution":
    """A domain as an Optuna distribution; choices become text, because they may be lists or mappings."""
    from optuna import distributions

    if domain.kind == "randint":
        return distributions.IntDistribution(*domain.values)
    if domain.is_range:
        low, high = domain.values
        return distributions.FloatDistribution(low, high, log=domain.kind == "loguniform")
    return distributions.CategoricalDistribution([canonical_json(value) for value in domain.values])


def _parameter(domain: DomainSpec, value: Any) -> Any:
    """A value as an Optuna parameter."""
    return value if domain.is_range else canonical_json(domain.values[domain.values.index(value)])
