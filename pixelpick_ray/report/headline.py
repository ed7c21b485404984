"""The headline figures of a report page."""

from collections.abc import Iterator, Sequence

from pixelpick_ray.report.cells import Cell, full_line, reported
from pixelpick_ray.report.page import Fact
from pixelpick_ray.report.provenance import Effort, devices, total_effort
from pixelpick_ray.report.rows import Results
from pixelpick_ray.report.tables import budget_text, count_text, n_text, share_text, strategy_text, value_text


def headline(results: Results, cells: Sequence[Cell], efforts: Sequence[Effort]) -> tuple[Fact, ...]:
    """Return the best strategy at the largest budget, if there is only one setting, stored trials and their cost."""
    shown = [cell for cell in reported(results, cells) if cell.values]
    asking = [cell for cell in shown if cell.line.strategy]
    one_setting = len({(cell.line.model, cell.line.setting) for cell in asking}) == 1
    best = tuple(_best_facts(asking, shown)) if one_setting else ()
    trials = len(results.trials)
    stored = trials - len({one.point for one in results.missing})
    fits, hours = total_effort(efforts)
    places = " and ".join(devices(efforts))
    return (
        *best,
        Fact(count_text(stored, trials), "trials stored", f"from {fits} trainings"),
        Fact(f"{hours:.3g}", "device hours", f"training and evaluation, on {places}" if places else ""),
    )


def _best_facts(asking: Sequence[Cell], shown: Sequence[Cell]) -> Iterator[Fact]:
    largest = max(cell.budget for cell in asking if cell.budget != "full")
    best = max((cell for cell in asking if cell.budget == largest), key=lambda cell: cell.summary.mean)
    what = f"{strategy_text(best.line)} at {budget_text(best.budget)} pixels per image"
    yield Fact(f"{value_text(best)} %", f"mIoU of {what}", f"the highest mean at this budget, n = {n_text(best)}")
    yield Fact(f"{share_text(best)} %", "of the pixels labelled", "at the largest budget")
    full = full_line(best.line, [cell.line for cell in shown])
    top = next((cell for cell in shown if cell.line == full), None)
    if top is not None and top.summary.mean > 0:
        share = 100 * best.summary.mean / top.summary.mean
        yield Fact(f"{share:.1f} %", "of full supervision", f"which reaches {value_text(top)} %, n = {n_text(top)}")
