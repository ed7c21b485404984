"""Sentences on strategies, word for word where they carry numbers."""

from collections.abc import Sequence

from pixelpick_ray.report.cells import Cell
from pixelpick_ray.report.verdicts import verdicts
from tests.support.contest import contests, make_cells

RANDOM = [50.0, 51.0, 50.5, 51.5, 52.0, 50.0]
SAME = "At 10 pixels per image, strategies with the same networks for every seed are not compared."


def paragraphs(*cells: Cell) -> tuple[str, ...]:
    return verdicts(contests(*cells)).sentences


def above_random(*points: float | None, setting: str = "") -> tuple[Cell, ...]:
    """Margin so many points above random at 20 pixels, one number a seed; both start from the same networks."""
    start = RANDOM[: len(points)]
    margin = [None if point is None else chance + point for chance, point in zip(start, points, strict=True)]
    percent = {"random": {10: start, 20: start}, "margin": {10: start, 20: margin}}
    return make_cells(percent, same=[10], setting=setting)


def test_few_seeds_hardly_tell_anything_five_can_not_reach_five_percent_by_signs_and_six_can() -> None:
    assert paragraphs(*above_random(2)) == (
        "By the area under the budget curve (10 to 20 pixels per image), margin is first with 51.0 % and random behind "
        "it with 50.0 %. On the one seed that both have, margin is 1.0 points above random; one seed allows no test, "
        f"so nothing can be judged. {SAME}",
        "With one seed no test is possible; a two-sided sign-flip test below p = 0.05 needs 6 seeds.",
    )
    first, limits = paragraphs(*above_random(1, 3))
    # The area takes half of the differences: 1 with a standard error of 0.5, t = 2, 12.706 standard errors.
    assert "Over the 2 seeds that both have, margin is 1.0 points above random (95 % interval -5.4 to +7.4); " in first
    assert "the paired t test does not tell them apart (p = 0.295)." in first
    assert "With 2 paired seeds a two-sided sign-flip test cannot go below 2/2^2 = 0.5," in limits
    first, limits = paragraphs(*above_random(1, 2, 3, 4, 5))
    # 1.5 with a standard error of sqrt(2.5 / 5) / 2 = 0.354: t = 4.243, and 2.776 of them are 0.98.
    assert "margin is 1.5 points above random (95 % interval +0.5 to +2.5); the paired t test tells them apart" in first
    assert "(p = 0.013)" in first
    assert limits == (
        "With 5 paired seeds a two-sided sign-flip test cannot go below 2/2^5 = 0.0625, whatever the results are, nor "
        "can Wilcoxon's: p < 0.05 needs 6 seeds. The t test can go lower because it takes the differences to be "
        "normally distributed, which so few seeds cannot show."
    )
    six = paragraphs(*above_random(1, 2, 3, 4, 5, 6))[1]
    assert six == "With 6 paired seeds a two-sided sign-flip test can reach p < 0.05."


def test_three_strategies_have_three_pairs_to_correct_for() -> None:
    def three(n: int) -> tuple[str, ...]:
        """Of margin about one point above random, entropy about as good as random."""
        start = [50.0 + seed for seed in range(n)]
        margin = [value + 1 + seed % 2 / 10 for seed, value in enumerate(start)]
        entropy = [value - 0.4 + 0.8 * (seed % 2) for seed, value in enumerate(start)]
        return paragraphs(*make_cells({"random": {20: start}, "margin": {20: margin}, "entropy": {20: entropy}}))

    assert three(6) == (
        "By mIoU at 20 pixels per image, margin is first with 53.5 % and random second with 52.5 %. Over the 6 seeds "
        "that both have, margin is 1.1 points above random (95 % interval +1.0 to +1.1); the paired t test tells them "
        "apart (p < 0.001 after Holm's correction). Of 3 pairs of strategies, 2 are told apart after Holm's "
        "correction.",
        "With 6 paired seeds a two-sided sign-flip test can go down to 2/2^6 = 0.03125: enough for p < 0.05 in one "
        "pair, but not after Holm's correction over 3 pairs, which needs 7 seeds.",
    )
    correction = "7 after Holm's correction over 3 pairs."
    assert three(1)[-1].endswith(f"needs 6 seeds for one pair, {correction}")
    assert f"p < 0.05 needs 6 seeds for one pair, {correction} The t test" in three(5)[-1]
    assert "can reach p < 0.05, also after Holm's correction over 3 pairs." in three(7)[-1]
    for above, words in (([3, 2, 1], "none is"), ([9, 9.1, 9], "2 are"), ([9, 30, 0], "none is")):
        percent = {"a": {20: [1, 2, 3]}, "b": {20: [1.1, 1.9, 3]}, "c": {20: [1 + x for x in above]}}
        told = f"Of 3 pairs of strategies, {words} told apart after Holm's correction."
        assert told in paragraphs(*make_cells(percent))[0]


def test_missing_seeds_are_named() -> None:
    first, limits = paragraphs(*above_random(1, 2, None, 3, 5))
    assert "Over the 4 seeds that both have, margin is 1.4 points above random" in first
    assert first.endswith(
        "Seeds are missing at some budget: margin has 4 of 5; pairs are compared over the seeds that both have."
    )
    assert "With 4 paired seeds" in limits
    cells = make_cells({"a": {20: [1, 2, 3]}, "b": {20: [2, 3, 5]}, "c": {20: [None, 9, 9]}})
    assert paragraphs(*cells)[-1].startswith("With at most 3 paired seeds a two-sided")
    first, _ = paragraphs(*make_cells({"random": {20: [50, 51, None]}, "margin": {20: [49, 48, 60]}}))
    assert "margin is first with 52.3 % and random behind it with 50.5 %." in first
    assert "Over the 2 seeds that both have, margin is 2.0 points below random" in first
    first, limits = paragraphs(*make_cells({"random": {20: [50, None]}, "margin": {20: [None, 52]}}))
    assert "They have no seed in common, so nothing can be judged between them." in first
    assert limits.startswith("With no seed in common no test is possible;")


def test_another_order_at_the_largest_budget_is_said() -> None:
    def at(margin: Sequence[float], entropy: Sequence[float]) -> str:
        start: dict[int, Sequence[float | None]] = {10: [40, 41], 20: [60, 61]}
        percent = {"margin": start | {30: margin}, "entropy": {10: [40, 41], 20: [50, 51], 30: entropy}}
        return paragraphs(*make_cells(percent | {"random": {10: [30, 31], 20: [40, 41], 30: [61, 62]}}))[0]

    other = "The order is different at the largest budget: at 30, entropy is first with 63.5 %."
    assert other in at([62, 63], [63, 64])
    behind = "At the largest budget, 30, margin is first too, but the order behind it differs."
    assert behind in at([62, 63], [59, 60])
    assert "largest budget" not in at([64, 65], [63, 64])


def test_equal_strategies_and_small_differences_are_told() -> None:
    first = paragraphs(*make_cells({"random": {20: [1, 2, 3]}, "margin": {20: [1, 2, 3]}}))[0]
    assert "random and margin are first with 2.0 % each. Over the 3 seeds" in first
    assert "random is level with margin (95 % interval +0.0 to +0.0)" in first
    first = paragraphs(*make_cells({"random": {20: [50, 51]}, "margin": {20: [50.01, 51.02]}}))[0]
    assert "margin is less than 0.1 points above random" in first
    assert paragraphs(*make_cells({"random": {10: [1, 2]}, "margin": {10: [1, 2]}}, same=[10])) == (
        f"There is no budget at which all strategies have results from networks of their own, so none leads. {SAME}",
    )


def test_settings_have_a_paragraph_each_and_strategies_without_results_are_said_so() -> None:
    found = paragraphs(*above_random(1, 2, 3, setting="a=1"), *above_random(3, 2, 1, setting="a=2"))
    assert [text.split(".")[0] for text in found[:2]] == ["Setting a=1", "Setting a=2"]
    assert len(found) == 3  # they share their limits
    assert verdicts(contests(*make_cells({"margin": {20: [1, 2]}}))) is verdicts(()) is None
    for none in ([], [None, None]):
        (first,) = paragraphs(*make_cells({"random": {20: [1, 2]}, "margin": {20: none}}))
        assert first.startswith("Fewer than two strategies have results, so nothing can be compared.")
