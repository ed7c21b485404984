"""Events as chains report them, written by hand."""

from pixelpick_ray.config.trial import Budget
from pixelpick_ray.events import EpochDone, StageDone


def epoch_done(
    chain: str, stage: int, epoch: int, *, epochs: int = 2, loss: float = 1.0, miou: float | None = None, fit: str = "f"
) -> EpochDone:
    """An epoch of a second."""
    return EpochDone(chain, stage, epoch, epochs, loss, miou, float(epoch), fit)


def stage_done(
    chain: str,
    stage: int,
    miou: float,
    *,
    trained: bool = True,
    budget: Budget = 2,
    losses: tuple[float, ...] = (1.0,),
    miou_by_epoch: tuple[tuple[int, float], ...] = (),
    seconds: float = 1.0,
    fit: str = "f",
) -> StageDone:
    return StageDone(chain, stage, trained, budget, fit, miou, miou_by_epoch, losses, seconds)
