"""Tables of people's answers: time taken, accuracy and agreement."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

from pixelpick_ray.data.answers import Kind
from pixelpick_ray.data.questions import Place
from pixelpick_ray.report.annotators import (
    REFUSALS,
    Annotations,
    AskedInStage,
    Given,
    first_looks,
    second_looks,
    seconds_of,
)
from pixelpick_ray.report.cells import Line
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.statistics import cohen_kappa, mean, wilson_interval
from pixelpick_ray.report.tables import budget_text, line_columns

ALL = "all"


def annotation_tables(annotations: Annotations) -> tuple[Table, ...]:
    """Return all tables that these answers allow; empty if nobody was asked."""
    tables = (
        _seconds_table(annotations) if annotations.labels else None,
        _annotator_table(annotations) if annotations.given else None,
        *_accuracy_tables(annotations),
        _suggestion_table(annotations),
        _agreement_table(annotations),
        _refusal_table(annotations.asked),
    )
    return tuple(table for table in tables if table)


# Seconds


def _seconds_table(annotations: Annotations) -> Table:
    """One row per kind of answer: all annotators together, and each one's median if there are several."""
    names = annotations.annotators if len(annotations.annotators) > 1 else ()
    rows = []
    for said, own in _by_answer(annotations):
        each = ([one for one in own if one.answer.annotator == name] for name in names)
        rows.append((said, *_seconds_texts(own), *map(_median_text, each)))
    caption = (
        "Seconds per answer, by answer given: from showing the pixel to the key press, excluding pauses and hidden "
        "repeats."
    )
    header = ("answer", "answers", "median (s)", "mean (s)", "total (min)", *names)
    notes = ("Columns of annotators: median seconds, and the number of answers in parentheses.",) if names else ()
    return Table(caption, header, tuple(rows), "l" + "r" * (len(header) - 1), (*notes, *_untimed_notes(annotations)))


def _by_answer(annotations: Annotations) -> list[tuple[str, list[Given]]]:
    """Answers grouped by class or refusal, in words, including unused ones, and finally all of them."""
    answers: list[tuple[Kind, str | None]] = [("class", name) for name in annotations.class_names]
    answers += [(kind, None) for kind in REFUSALS]
    found: dict[tuple[Kind, str | None], list[Given]] = {said: [] for said in answers}
    for one in annotations.labels:
        found.setdefault((one.answer.kind, one.answer.label), []).append(one)
    by_words = [(label or REFUSALS[kind], own) for (kind, label), own in found.items()]
    return [*by_words, (ALL, list(annotations.labels))]


def _seconds_texts(given: Sequence[Given]) -> tuple[str, str, str, str]:
    """Number, median, mean and total minutes."""
    seconds = seconds_of(given)
    if not seconds:
        return f"{len(given):,}", "-", "-", "-"
    middle, total = statistics.median(seconds), math.fsum(seconds)
    return f"{len(given):,}", f"{middle:.2f}", f"{mean(seconds):.2f}", f"{total / 60:,.1f}"


def _median_text(given: Sequence[Given]) -> str:
    seconds = seconds_of(given)
    return f"{statistics.median(seconds):.2f} ({len(seconds):,})" if seconds else "-"


def _untimed_notes(annotations: Annotations) -> tuple[str, ...]:
    untimed = len(annotations.labels) - len(seconds_of(annotations.labels))
    return (f"Not timed: {untimed:,} of {len(annotations.labels):,} answers.",) if untimed else ()


def _annotator_table(annotations: Annotations) -> Table:
    """One row per annotator: answers, times and pauses."""
    rows = []
    for name in annotations.annotators:
        own = [one for one in annotations.labels if one.answer.annotator == name]
        pauses = math.fsum(one.answer.idle_seconds or 0.0 for one in own)
        refused = [_share_text(sum(one.answer.kind == kind for one in own), len(own)) for kind in REFUSALS]
        repeats = sum(one.answer.repeat and one.answer.annotator == name for one in annotations.given)
        rows.append((name, *_seconds_texts(own), f"{pauses / 60:,.1f}", *refused, f"{repeats:,}"))
    header = (
        *("annotator", "answers", "median (s)", "mean (s)", "total (min)", "pauses (min)"),
        *("none (%)", "cannot tell (%)", "repeats"),
    )
    caption = (
        "Answers of each annotator; hidden repeats (pixels asked about again, unannounced) are only counted in the "
        f'last column. "none": {REFUSALS["void"]}.'
    )
    return Table(caption, header, tuple(rows), "l" + "r" * (len(header) - 1))


# Right and wrong


def _accuracy_tables(annotations: Annotations) -> tuple[Table | None, ...]:
    """Shares of correct answers, separately without and with a suggestion."""
    firsts = [one for looks in first_looks(annotations.labels).values() for one in looks.values()]
    judged = [one for one in firsts if one.truth is not None and one.answer.kind != "unknown"]
    without = [one for one in judged if one.answer.suggestion is None]
    with_one = [one for one in judged if one.answer.suggestion is not None]
    which = ("to questions without a suggestion ", "to questions with a suggestion ") if with_one else ("", "")
    return tuple(
        _accuracy_table(annotations, own, text) for own, text in zip((without, with_one), which, strict=True) if own
    )


def _accuracy_table(annotations: Annotations, judged: Sequence[Given], which: str) -> Table:
    names = annotations.annotators if len(annotations.annotators) > 1 else ()
    by_class = [(truth, [one for one in judged if one.truth == truth]) for truth in annotations.class_names]
    rows = []
    for truth, own in (*by_class, (ALL, judged)):
        each = ([one for one in own if one.answer.annotator == name] for name in names)
        rows.append((truth, f"{len(own):,}", _right_text(own), *map(_counted_text, each)))
    caption = (
        f"Answers {which}that agree with the label map, in percent, by its class, with Wilson's 95 % interval. "
        f'"{REFUSALS["void"]}" counts as wrong where the label map has a class; "{REFUSALS["unknown"]}" and '
        "hidden repeats are left out."
    )
    notes = ("Columns of annotators: the number of answers is in parentheses.",) if names else ()
    header = ("class", "answers", "right (%)", *names)
    return Table(caption, header, tuple(rows), "l" + "r" * (len(header) - 1), notes)


def _suggestion_table(annotations: Annotations) -> Table | None:
    """How often suggestions were right and were taken; None if there were none."""
    firsts = sorted(first_looks(annotations.labels).items())
    suggested = {name: [one for one in looks.values() if one.answer.suggestion is not None] for name, looks in firsts}
    by_name = {name: own for name, own in suggested.items() if own}
    if not by_name:
        return None
    everyone = {ALL: [one for own in by_name.values() for one in own]} if len(by_name) > 1 else {}
    rows = tuple((name, *_suggestion_texts(own)) for name, own in (by_name | everyone).items())
    caption = (
        "Suggested classes: how often they agreed with the label map, and how often they were taken, overall and when "
        "right or wrong, in percent with Wilson's 95 % interval."
    )
    header = ("annotator", "suggestions", "right (%)", "taken (%)", "taken when right (%)", "taken when wrong (%)")
    return Table(caption, header, rows, "l" + "r" * (len(header) - 1))


def _suggestion_texts(given: Sequence[Given]) -> tuple[str, ...]:
    known = [one for one in given if one.truth is not None]
    right = [one for one in known if one.answer.suggestion == one.truth]
    wrong = [one for one in known if one.answer.suggestion != one.truth]
    taken = (_interval_text(sum(map(_is_taken, own)), len(own)) for own in (given, right, wrong))
    return f"{len(given):,}", _interval_text(len(right), len(known)), *taken


def _is_taken(one: Given) -> bool:
    return one.answer.label == one.answer.suggestion


# Agreement


def _agreement_table(annotations: Annotations) -> Table | None:
    """Agreement of annotators with themselves and one another; None if no pixel has two answers."""
    firsts, seconds = first_looks(annotations.given), second_looks(annotations.given)
    names = annotations.annotators
    found = {(name, f"{name}, asked again"): _pairs(firsts[name], seconds.get(name, {})) for name in names}
    found |= {(one, other): _pairs(firsts[one], firsts[other]) for one, other in combinations(names, 2)}
    rows = tuple((*who, *_agreement_texts(pairs)) for who, pairs in found.items() if pairs)
    if not rows:
        return None
    caption = (
        "Agreement between two answers to the same pixels, in percent with Wilson's 95 % interval, and Cohen's kappa "
        f'(1960), agreement beyond chance. "{REFUSALS["void"]}" and "{REFUSALS["unknown"]}" count as answers.'
    )
    header = ("one", "other", "pixels", "agreement (%)", "kappa")
    return Table(caption, header, rows, "llrrr")


_Looks = Mapping[tuple[str, Place], Given]


def _pairs(ones: _Looks, others: _Looks) -> list[tuple[tuple[str, str | None], tuple[str, str | None]]]:
    """Pairs of answers to the pixels that both have answered."""
    return [
        ((one.answer.kind, one.answer.label), (others[pixel].answer.kind, others[pixel].answer.label))
        for pixel, one in ones.items()
        if pixel in others
    ]


def _agreement_texts(pairs: Sequence[tuple[object, object]]) -> tuple[str, str, str]:
    kappa = cohen_kappa(pairs)
    agreed = _interval_text(sum(one == other for one, other in pairs), len(pairs))
    return f"{len(pairs):,}", agreed, "-" if math.isnan(kappa) else f"{kappa:.3f}"


# Pixels without a class


def _refusal_table(asked: Sequence[AskedInStage]) -> Table | None:
    """Pixels that got no class, by line and stage, over all seeds; None if every pixel got one."""
    if not any(count for one in asked for count in one.refused.values()):
        return None
    groups: defaultdict[tuple[Line, int], list[AskedInStage]] = defaultdict(list)
    for one in asked:
        groups[one.line, one.budget].append(one)
    columns = line_columns(line for line, _ in groups)
    rows = tuple(
        (*(texts[line] for texts in columns.values()), budget_text(budget), *_refusal_texts(own))
        for (line, budget), own in groups.items()
    )
    caption = (
        'Pixels that people gave no class, by stage, over all seeds; they are not trained on. "none": '
        f'{REFUSALS["void"]}; "replacements": other pixels of the same images, asked about instead ("-": the '
        'experiment does not replace pixels); "open": not answered yet.'
    )
    header = (*columns, "pixels per image", "asked", "none", "cannot tell", "replacements", "open")
    return Table(caption, header, rows, "l" * len(columns) + "r" * (len(header) - len(columns)))


def _refusal_texts(own: Sequence[AskedInStage]) -> tuple[str, ...]:
    replacements = [one.replacements for one in own if one.replacements is not None]
    return (
        f"{sum(one.pixels for one in own):,}",
        *(f"{sum(one.refused[kind] for one in own):,}" for kind in REFUSALS),
        f"{sum(replacements):,}" if replacements else "-",
        f"{sum(one.open for one in own):,}",
    )


# Texts


def _right_text(given: Sequence[Given]) -> str:
    return _interval_text(sum(one.is_right for one in given), len(given))


def _counted_text(given: Sequence[Given]) -> str:
    return f"{_right_text(given)} ({len(given):,})" if given else "-"


def _interval_text(successes: int, n: int) -> str:
    """For example "90.0 [69.9, 97.2]"; "-" if n is 0."""
    if not n:
        return "-"
    low, high = wilson_interval(successes, n)
    return f"{_share_text(successes, n)} [{100 * low:.1f}, {100 * high:.1f}]"


def _share_text(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"
