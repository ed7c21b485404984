"""Verdicts in sentences: what the seeds of a study show about its strategies, and what they cannot show."""

import math
from collections.abc import Iterator, Mapping, Sequence

from pixelpick_ray.report.cells import Line
from pixelpick_ray.report.judgement import BETTER, WORSE, Contest, Match, p_text, same_texts, setting_columns
from pixelpick_ray.report.parts import Prose
from pixelpick_ray.report.statistics import ALPHA, mean, pairs_needed, smallest_sign_flip_p
from pixelpick_ray.report.tables import percent_text, points_text


def verdicts(contests: Sequence[Contest]) -> Prose | None:
    """Write a paragraph per setting, and what the number of seeds allows; None if no strategies compete."""
    if not contests:
        return None
    columns = setting_columns(contests)
    paragraphs = [" ".join((*_setting_texts(columns, contest), *_sentences(contest))) for contest in contests]
    limits = dict.fromkeys(_limits_text(contest) for contest in contests if contest.tested(contest.budgets))
    return Prose((*paragraphs, *limits))


def _setting_texts(columns: Mapping[str, Mapping[Line, str]], contest: Contest) -> Iterator[str]:
    """The setting, by whatever differs between settings."""
    line = contest.lines[0]
    varying = (name for name, texts in columns.items() if len(set(texts.values())) > 1 and texts[line])
    text = ", ".join(f"{name} {columns[name][line]}" for name in varying)
    if text:
        yield f"{text[0].upper()}{text[1:]}."


def _sentences(contest: Contest) -> Iterator[str]:
    if len(contest.scores) < 2:
        yield "Fewer than two strategies have results, so nothing can be compared."
        return
    if not contest.tested(contest.budgets):
        yield "There is no budget at which all strategies have results from networks of their own, so none leads."
    else:
        yield from _leader_texts(contest)
        yield from _order_texts(contest)
    yield from same_texts([contest])
    yield from _missing_texts(contest)


def _leader_texts(contest: Contest) -> Iterator[str]:
    """Who leads, and what the tests say about the first two and about all pairs."""
    means = {line: mean(list(own.values())) for line, own in contest.scores.items() if own}
    if len(means) < 2:
        yield "Fewer than two strategies have a seed with every budget, so none leads by area."
        return
    first, second = _ranking(means)[:2]
    best, next_best = (f"{percent_text(means[line], math.nan)} %" for line in (first, second))
    if means[first] == means[second]:
        ranks = f"{first.strategy} and {second.strategy} are first with {best} each"
    else:
        place = "second" if len(means) > 2 else "behind it"
        ranks = f"{first.strategy} is first with {best} and {second.strategy} {place} with {next_best}"
    yield f"By {_measure_text(contest.budgets)}, {ranks}."
    matches = contest.tested(contest.budgets)
    for match in matches:
        if {match.first, match.second} == {first, second}:
            yield _match_text(match, first.strategy, second.strategy)
    tested = [match for match in matches if match.tests.n > 1]
    if len(tested) > 1:
        apart = sum(match.verdict in (BETTER, WORSE) for match in tested)
        many = {0: "none is", 1: "one is", len(tested): "all are"}
        found = many.get(apart, f"{apart} are")
        yield f"Of {len(tested)} pairs of strategies, {found} told apart after Holm's correction."


def _match_text(match: Match, first: str, second: str) -> str:
    """The leader's difference from the next, and whether the paired t test tells them apart."""
    tests, n = match.tests, match.tests.n
    if n == 0:
        return "They have no seed in common, so they cannot be compared."
    sign = 1 if match.first.strategy == first else -1
    where = _where_text(sign * tests.mean)
    over = f"Over the {n} seeds that both have" if n > 1 else "On the one seed that both have"
    if n == 1:
        return f"{over}, {first} is {where} {second}; one seed allows no test."
    low, high = sorted((sign * tests.low, sign * tests.high))
    p = f"p {_equal_text(match.adjusted)}" + (" after Holm's correction" if match.family > 1 else "")
    tells = "tells them apart" if match.verdict in (BETTER, WORSE) else "does not tell them apart"
    return (
        f"{over}, {first} is {where} {second} (95 % interval {points_text(low)} to {points_text(high)}); "
        f"the paired t test {tells} ({p})."
    )


def _where_text(difference: float) -> str:
    if difference == 0.0:
        return "level with"
    points = points_text(abs(difference)).removeprefix("+")
    return f"{'less than 0.1' if points == '0.0' else points} points {'above' if difference > 0 else 'below'}"


def _equal_text(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def _order_texts(contest: Contest) -> Iterator[str]:
    """Whether strategies rank differently at the largest budget than by area."""
    if len(contest.budgets) < 2:
        return
    budget = contest.budgets[-1]
    areas = _ranking({line: mean(list(own.values())) for line, own in contest.scores.items() if own})
    largest = {line: contest.cells[line, budget].summary.mean for line in areas}
    order = _ranking(largest)
    if order == areas:
        return
    value = f"{percent_text(largest[order[0]], math.nan)} %"
    if order[0] != areas[0]:
        yield f"The order is different at the largest budget: at {budget}, {order[0].strategy} is first with {value}."
    else:
        yield f"At the largest budget, {budget}, {order[0].strategy} is first too, but the order behind it differs."


def _ranking(means: Mapping[Line, float]) -> list[Line]:
    return sorted(means, key=lambda line: -means[line])


def _missing_texts(contest: Contest) -> Iterator[str]:
    """Which strategies lack seeds with every compared budget."""
    found = []
    for line in contest.lines:
        expected = max(cell.expected for (own, _), cell in contest.cells.items() if own == line)
        n = len(contest.scores.get(line, ()))
        if n < expected:
            found.append(f"{line.strategy} has {n} of {expected}")
    if found:
        some = ", ".join(found)
        yield f"Seeds are missing at some budget: {some}; pairs are compared over the seeds that both have."


def _limits_text(contest: Contest) -> str:
    """What a two-sided sign-flip test can show with the number of seeds of a setting's best-covered pair."""
    matches = contest.tested(contest.budgets)
    n, pairs = max(match.tests.n for match in matches), len(matches)
    alone, corrected = pairs_needed(), pairs_needed(pairs)
    needed = f"{alone} seeds" + (f" for one pair, {corrected} after Holm's correction over {pairs} pairs" * (pairs > 1))
    if n < 2:
        have = "With no seed in common" if n == 0 else "With one seed"
        return f"{have} no test is possible; a two-sided sign-flip test below p = {ALPHA:g} needs {needed}."
    most = "at most " if any(match.tests.n < n for match in matches) else ""
    start = f"With {most}{n} paired seeds a two-sided sign-flip test"
    smallest = f"2/2^{n} = {smallest_sign_flip_p(n):.4g}"
    if n < alone:
        return (
            f"{start} cannot go below {smallest}, whatever the results are, nor can Wilcoxon's: p < {ALPHA:g} needs "
            f"{needed}. The t test can go lower because it assumes normally distributed differences, which so "
            "few seeds cannot show."
        )
    if n < corrected:
        return (
            f"{start} can go down to {smallest}: enough for p < {ALPHA:g} in one pair, but not after Holm's correction "
            f"over {pairs} pairs, which needs {corrected} seeds."
        )
    also = f", also after Holm's correction over {pairs} pairs" if pairs > 1 else ""
    return f"{start} can reach p < {ALPHA:g}{also}."


def _measure_text(budgets: tuple[int, ...]) -> str:
    if len(budgets) == 1:
        return f"mIoU at {budgets[0]} pixels per image"
    return f"the area under the budget curve ({budgets[0]} to {budgets[-1]} pixels per image)"
