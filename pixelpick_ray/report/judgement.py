"""Strategy comparison: paired tests over seeds within each setting, wins over settings, and rank stability."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pixelpick_ray.active.metrics import area_under_curve
from pixelpick_ray.config.trial import Budget
from pixelpick_ray.report.cells import Cell, Line, reported
from pixelpick_ray.report.paired import Paired, compare_all, kendall_tau
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.rows import Results, csv_text
from pixelpick_ray.report.statistics import ALPHA, holm, mean
from pixelpick_ray.report.tables import line_columns, points_text

BETTER, WORSE, NOT_APART = "better", "worse", "not told apart"
TOO_FEW, SAME = "too few seeds", "same networks"

CSV_COLUMNS = (
    *("experiment", "dataset", "architecture", "backbone", "pretrained", "setting", "split", "checkpoint"),
    *("first", "second", "measure", "budgets", "seeds", "n", "difference", "low", "high"),
    *("p_t", "p_sign_flip", "p_wilcoxon", "p_t_holm", "family", "verdict"),
)


@dataclass(frozen=True)
class Match:
    """Two strategies compared by mIoU at one budget, or by the area over several, over the seeds that both have.

    `tests` are of first - second, as fractions. `same`: both have the same network for every seed, as at the first
    budget, so there is nothing to test. `adjusted` is the t test's p value after Holm's correction over `family` tests:
    all possible ones between pairs of the setting by this measure. It is NaN if not tested.
    """

    first: Line
    second: Line
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    tests: Paired
    same: bool
    adjusted: float
    family: int

    @property
    def verdict(self) -> str:
        """Outcome for the first strategy: one of the constants above."""
        if self.same:
            return SAME
        if self.tests.n < 2:
            return TOO_FEW
        if self.adjusted >= ALPHA:
            return NOT_APART
        return BETTER if self.tests.mean > 0 else WORSE


@dataclass(frozen=True)
class Contest:
    """The strategies of one setting, two or more.

    `budgets` are those at which every strategy with results has some; the area covers them. `scores` are areas by line
    and seed, for seeds that have all these budgets, or mIoU if there is a single budget. Lines without results have
    none.
    """

    lines: tuple[Line, ...]
    cells: Mapping[tuple[Line, int], Cell]
    budgets: tuple[int, ...]
    scores: Mapping[Line, Mapping[int, float]]
    matches: tuple[Match, ...]

    def tested(self, budgets: tuple[int, ...]) -> tuple[Match, ...]:
        """Return the matches by one measure, except those of identical networks."""
        return tuple(match for match in self.matches if match.budgets == budgets and not match.same)

    @property
    def shown(self) -> tuple[tuple[int, ...], ...]:
        """Measures to show: the area, if there is one, and the largest budget."""
        return tuple(dict.fromkeys((self.budgets, self.budgets[-1:]))) if self.budgets else ()


# By line, budget and seed, without NaN.
_Values = Mapping[Line, Mapping[int, Mapping[int, float]]]


def judge(results: Results, cells: Sequence[Cell]) -> tuple[Contest, ...]:
    """Compare the strategies of every setting with at least two, paired by seed, which determines the first pixels.

    Uses the default table: mIoU, last epoch, reported split. A setting is the model and everything else except the
    strategy; full supervision does not take part.
    """
    by_setting: defaultdict[tuple[tuple[str, ...], str], dict[tuple[Line, int], Cell]] = defaultdict(dict)
    for cell in reported(results, cells):
        if cell.budget != "full":
            by_setting[cell.line.model, cell.line.setting][cell.line, cell.budget] = cell
    found = (_contest(own) for own in by_setting.values())
    return tuple(contest for contest in found if len(contest.lines) > 1)


def _contest(cells: Mapping[tuple[Line, int], Cell]) -> Contest:
    values: defaultdict[Line, dict[int, dict[int, float]]] = defaultdict(dict)
    for (line, budget), cell in cells.items():
        known = {seed: one for seed, one in zip(cell.seeds, cell.values, strict=True) if not math.isnan(one)}
        if known:
            values[line][budget] = dict(sorted(known.items()))
    every = sorted({budget for own in values.values() for budget in own})
    shared = tuple(budget for budget in every if all(budget in own for own in values.values()))
    measures = dict.fromkeys((shared, *((budget,) for budget in every)) if shared else ((budget,) for budget in every))
    matches = tuple(match for budgets in measures for match in _family(cells, values, budgets))
    scores = {line: _scores(own, shared) for line, own in values.items()}
    return Contest(tuple(dict.fromkeys(line for line, _ in cells)), cells, shared, scores, matches)


def _scores(own: Mapping[int, Mapping[int, float]], budgets: tuple[int, ...]) -> dict[int, float]:
    """Area over these budgets, for each seed that has them all."""
    if not budgets:
        return {}
    complete = [seed for seed in own[budgets[0]] if all(seed in own[budget] for budget in budgets)]
    return {seed: area_under_curve(budgets, [own[budget][seed] for budget in budgets]) for seed in complete}


def _family(cells: Mapping[tuple[Line, int], Cell], values: _Values, budgets: tuple[int, ...]) -> Iterator[Match]:
    """All pairs of strategies by one measure: the family of Holm's correction."""
    scores = {line: _scores(own, budgets) for line, own in values.items() if all(budget in own for budget in budgets)}
    networks = {line: _networks(cells, line, budgets) for line in scores}
    pairs = [
        (first, second, tuple(seed for seed in scores[first] if seed in scores[second]))
        for first, second in itertools.combinations(scores, 2)
    ]
    tests = compare_all([([scores[one][s] for s in own], [scores[two][s] for s in own]) for one, two, own in pairs])
    same = [bool(own) and all(networks[one][s] == networks[two][s] for s in own) for one, two, own in pairs]
    p_values = [math.nan if is_same else test.t_p for is_same, test in zip(same, tests, strict=True)]
    adjusted, family = holm(p_values), sum(not math.isnan(p) for p in p_values)
    for at, (first, second, seeds) in enumerate(pairs):
        yield Match(first, second, budgets, seeds, tests[at], same[at], adjusted[at], family)


def _networks(
    cells: Mapping[tuple[Line, int], Cell], line: Line, budgets: tuple[int, ...]
) -> dict[int, tuple[str, ...]]:
    """Keys of the existing fits at these budgets, by seed."""
    keys: defaultdict[int, tuple[str, ...]] = defaultdict(tuple)
    for budget in budgets:
        cell = cells[line, budget]
        for seed, key in zip(cell.seeds, cell.fit_keys, strict=True):
            keys[seed] += (key,)
    return keys


def best_and_ties(contests: Iterable[Contest]) -> frozenset[tuple[Line, Budget]]:
    """Return, for each budget of a setting, the best mean and those not significantly different by the paired t test.

    p values are uncorrected. With fewer than two shared seeds there is no test, and only equal means tie. A strategy
    that is alone at its budget is left out.
    """
    return frozenset(place for contest in contests for place in _best_and_ties(contest))


def _best_and_ties(contest: Contest) -> Iterator[tuple[Line, Budget]]:
    p_values = {(match.budgets, match.first, match.second): match.tests.t_p for match in contest.matches}
    p_values |= {(budgets, second, first): p for (budgets, first, second), p in p_values.items()}
    means: defaultdict[int, dict[Line, float]] = defaultdict(dict)
    for (line, budget), cell in contest.cells.items():
        if cell.summary.n:
            means[budget][line] = cell.summary.mean
    for budget, by_line in means.items():
        best = max(by_line, key=by_line.__getitem__)
        for line, value in by_line.items():
            tie = value == by_line[best] or p_values[(budget,), best, line] >= ALPHA
            if tie and len(by_line) > 1:
                yield line, budget


# Tables and CSV


def pair_table(contests: Sequence[Contest]) -> Table | None:
    """Tabulate all pairs of strategies by area and at the largest budget; None if no two have results."""
    shown = [match for contest in contests for budgets in contest.shown for match in contest.tested(budgets)]
    if not shown:
        return None
    columns = setting_columns(contests)
    rows = tuple((*(texts[one.first] for texts in columns.values()), *_match_texts(one)) for one in shown)
    measured = ("measure", "difference", "95 % interval", "n", "p (t)", "p (sign flips)", "p (Wilcoxon)")
    header = (*columns, "first", "second", *measured, "p (t, Holm)", "the first is")
    area = f"the area under the budget curve ({_AREA}) and " if any(len(one.budgets) > 1 for one in shown) else ""
    caption = (
        f"Pairs of strategies on {places_text(contests)} after the last epoch of a stage, by {area}mIoU at the largest "
        "budget that all have. Difference: first minus second in points over the seeds that both have, with "
        "Student's interval. p values are two-sided. Holm's correction covers all pairs of one setting by one "
        f"measure, not several measures or settings; the last column uses it at {ALPHA:g}."
    )
    return Table(caption, header, rows, "l" * (len(columns) + 3) + "rrrrrrrl", tuple(same_texts(contests)))


_AREA = "the mean height between the smallest and the largest budget"


def _match_texts(match: Match) -> tuple[str, ...]:
    tests = match.tests
    interval = "-" if math.isnan(tests.low) else f"{points_text(tests.low)} to {points_text(tests.high)}"
    p_values = (tests.t_p, tests.flip_p, tests.wilcoxon_p, match.adjusted)
    names = match.first.strategy, match.second.strategy, measure_text(match.budgets)
    return (*names, points_text(tests.mean), interval, str(tests.n), *map(p_text, p_values), match.verdict)


def pairs_csv(contests: Iterable[Contest]) -> str:
    """Write all matches, including those at single budgets, as CSV: fractions, lists joined by spaces."""
    lines = []
    for contest in contests:
        for match in contest.matches:
            cell, tests = contest.cells[match.first, match.budgets[-1]], match.tests
            values = vars(match.first) | vars(cell) | vars(match) | vars(tests) | {"difference": tests.mean}
            values |= {name: " ".join(map(str, getattr(match, name))) for name in ("budgets", "seeds")}
            values |= {"first": match.first.strategy, "second": match.second.strategy, "verdict": match.verdict}
            values |= {"p_t": tests.t_p, "p_sign_flip": tests.flip_p, "p_wilcoxon": tests.wilcoxon_p}
            values |= {"p_t_holm": match.adjusted, "measure": "miou" if len(match.budgets) == 1 else "area"}
            lines.append([values[name] for name in CSV_COLUMNS])
    return csv_text(CSV_COLUMNS, lines)


def win_matrix(contests: Sequence[Contest]) -> Table | None:
    """Count wins between strategies over all settings and single budgets; None if nothing could be tested."""
    wins: Counter[tuple[str, str]] = Counter()
    played: Counter[tuple[str, str]] = Counter()
    for match in (match for contest in contests for match in contest.matches):
        if len(match.budgets) > 1 or match.verdict in (SAME, TOO_FEW):
            continue
        pair = match.first.strategy, match.second.strategy
        played.update((pair, pair[::-1]))
        wins.update([pair] * (match.verdict == BETTER) + [pair[::-1]] * (match.verdict == WORSE))
    if not played:
        return None
    names = list(dict.fromkeys(line.strategy for contest in contests for line in contest.lines))
    names.sort(key=lambda name: -_total(wins, name))
    rows = tuple(
        (name, *(_wins_text(wins[name, other], played[name, other]) for other in names), _wins_text(*totals))
        for name, totals in ((name, (_total(wins, name), _total(played, name))) for name in names)
    )
    caption = (
        f"How often the row's strategy beats the column's, out of their comparisons on {places_text(contests)}: one "
        "per setting and budget, by the paired t test of mIoU over seeds with Holm's correction over all pairs "
        f"of that setting and budget, at {ALPHA:g}."
    )
    return Table(caption, ("strategy", *names, "wins"), rows, "l" + "r" * (len(names) + 1), tuple(same_texts(contests)))


def _total(counts: Counter[tuple[str, str]], name: str) -> int:
    return sum(count for (first, _), count in counts.items() if first == name)


def _wins_text(wins: int, played: int) -> str:
    return f"{wins}/{played}" if played else "-"


def stability_table(contests: Sequence[Contest]) -> Table | None:
    """Tabulate whether rankings hold with one seed left out; None if no setting has three seeds that all have.

    Strategies are ranked by mean area over these seeds, or by mIoU if there is only one budget.
    """
    ranked = [contest for contest in contests if contest.tested(contest.budgets) and len(_common_seeds(contest)) > 2]
    if not ranked:
        return None
    columns = setting_columns(ranked)
    rows = tuple((*(texts[one.lines[0]] for texts in columns.values()), *_stability_texts(one)) for one in ranked)
    caption = (
        f"Rankings on {places_text(ranked)} over the seeds that all strategies have, by the mean area under the "
        f"budget curve ({_AREA}), and their stability when one seed is left out: how often the same strategy "
        "is first, and the smallest Kendall tau (1: same order, -1: reversed) with the ranking over all seeds."
    )
    header = (*columns, "measure", "ranking", "n", "same first", "smallest tau")
    return Table(caption, header, rows, "l" * (len(columns) + 2) + "rrr")


def _common_seeds(contest: Contest) -> list[int]:
    """Seeds that all strategies with results have."""
    scores = list(contest.scores.values())
    return [seed for seed in scores[0] if all(seed in own for own in scores)] if len(scores) > 1 else []


def _stability_texts(contest: Contest) -> tuple[str, ...]:
    seeds = _common_seeds(contest)
    means = {line: mean([own[seed] for seed in seeds]) for line, own in contest.scores.items()}
    ranking = sorted(means, key=lambda line: -means[line])
    kept, taus = 0, []
    for left_out in seeds:
        without = {
            line: mean([own[seed] for seed in seeds if seed != left_out]) for line, own in contest.scores.items()
        }
        kept += max(without, key=without.__getitem__) == ranking[0]
        taus.append(kendall_tau(list(means.values()), list(without.values())))
    tau = min((one for one in taus if not math.isnan(one)), default=math.nan)
    steps = ((" = " if means[one] == means[two] else " > ") + two.strategy for one, two in itertools.pairwise(ranking))
    order = ranking[0].strategy + "".join(steps)
    count = str(len(seeds)), f"{kept}/{len(seeds)}", "-" if math.isnan(tau) else f"{tau:.2f}"
    return measure_text(contest.budgets), order, *count


# Texts


def setting_columns(contests: Iterable[Contest]) -> dict[str, dict[Line, str]]:
    """Return the columns of all lines except the strategy."""
    columns = line_columns(line for contest in contests for line in contest.lines)
    return {name: texts for name, texts in columns.items() if name != "strategy"}


def places_text(contests: Iterable[Contest]) -> str:
    """List data sets and splits."""
    cells = (cell for contest in contests for cell in contest.cells.values())
    return " and ".join(dict.fromkeys(f"{cell.line.dataset} {cell.split}" for cell in cells))


def same_texts(contests: Iterable[Contest]) -> Iterator[str]:
    """Yield a sentence on the budgets at which strategies have identical networks, if any."""
    matches = [match for contest in contests for match in contest.matches]
    budgets = sorted({match.budgets[0] for match in matches if match.same and len(match.budgets) == 1})
    if budgets:
        some = " and ".join(map(str, budgets))
        yield f"At {some} pixels per image, strategies with the same networks for every seed are not compared."


def measure_text(budgets: tuple[int, ...]) -> str:
    """Name a measure, e.g. "area, 10 to 50" or "mIoU at 50"."""
    return f"mIoU at {budgets[0]}" if len(budgets) == 1 else f"area, {budgets[0]} to {budgets[-1]}"


def p_text(p: float) -> str:
    """Format a p value: three decimals, "< 0.001", or "-" for NaN."""
    if math.isnan(p):
        return "-"
    return "< 0.001" if p < 0.0005 else f"{p:.3f}"
