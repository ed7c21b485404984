"""Keys: a result is stored under the SHA-256 of everything that it depends on."""

from dataclasses import dataclass
from typing import Any

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.trial import EvaluateSpec, HumanSpec, SizeSpec, Trial

# Raised by hand when the meaning of a step's result changes; older results are then computed again.
VERSIONS = {"initial": 2, "fit": 3, "evaluation": 2, "pick": 3, "split": 1, "question": 1, "book": 1}


@dataclass(frozen=True)
class Source:
    """What the results of a trial depend on beside its spec: the contents of the data set's splits, by fingerprint,
    and of the pretrained weights.
    """

    fingerprints: dict[str, str]
    training_split: str
    weights_digest: str | None


def initial_input(trial: Trial, source: Source) -> dict[str, Any]:
    """Input of the first pixels, chosen by chance; backbones and strategies share them."""
    return _step_input(
        "initial",
        data=_data(trial, source),
        initial_pixels=trial.acquire.initial_pixels,
        oracle=trial.oracle.as_input(),
        seed=trial.seed,
    )


def fit_input(trial: Trial, source: Source, *, stage: int, labels_digest: str) -> dict[str, Any]:
    """Input of one training; strategy, budget, evaluation and ranks are not in it. `labels_digest` may be "full"."""
    return _step_input(
        "fit",
        data=_data(trial, source),
        model=trial.model.as_input() | {"weights_digest": source.weights_digest},
        train=trial.training.as_input(),
        seed=trial.seed,
        stage=stage,
        labels=labels_digest,
    )


def pick_input(trial: Trial, *, fit_key: str, stage: int) -> dict[str, Any]:
    """Input of the choice and labelling of the next pixels after a fit."""
    acquire = trial.acquire.as_input()
    del acquire["initial_pixels"]  # already in the labels of the fit
    return _step_input(
        "pick", fit=fit_key, acquire=acquire, oracle=trial.oracle.as_input(), seed=trial.seed, stage=stage
    )


def question_input(pick: dict[str, Any], *, answered: list[tuple[str, str]]) -> dict[str, Any]:
    """Input of the pixels that people are asked about on the way to a pick (or to the first pixels) of this input.

    `answered` are the keys of the questions before these, each with the digest of the labels that people gave: new
    pixels replace those that got no class.
    """
    return _step_input("question", pick=digest(pick), answered=[list(pair) for pair in answered])


def book_input(trial: Trial, identity: list[Any]) -> dict[str, Any]:
    """Input of the book of people's answers: the data set that is trained on, by its `identity`, where its images lie,
    how they are prepared, and how people are asked.

    All chains that ask about these images share it, whatever their seed, network or strategy. What the images show is
    no part of it, so that some may be added: it is compared when they are asked about.
    """
    suggestions = isinstance(trial.oracle, HumanSpec) and trial.oracle.suggestions
    size, path = trial.dataset.size_spec().as_input(), trial.dataset.path
    return _step_input("book", dataset=identity, path=path, size=size, suggestions=suggestions)


def evaluation_input(
    evaluate: EvaluateSpec, trial: Trial, source: Source, *, split: str, fit_key: str
) -> dict[str, Any]:
    """Input of the confusion matrices of a fit on one split, known by the name that the experiment gives it."""
    size = evaluation_size(evaluate, trial, split)
    data = {"fingerprint": source.fingerprints[evaluate.split_of(split)], "size": size.as_input()}
    return _step_input("evaluation", fit=fit_key, split=evaluate.split_of(split), data=data, when=evaluate.when)


def split_input(size: SizeSpec, *, fingerprint: str, images: list[str] | None) -> dict[str, Any]:
    """Input of what a report tells of a prepared split; `images` are those that it is reduced to, None for all."""
    return _step_input("split", fingerprint=fingerprint, size=size.size_spec().as_input(), images=images)


def evaluation_size(evaluate: EvaluateSpec, trial: Trial, split: str) -> SizeSpec:
    """The size that a split is evaluated at: its own, or that of training when it gives none."""
    own = evaluate.splits[split].size_spec()
    return trial.dataset.size_spec() if own == SizeSpec() else own


def _data(trial: Trial, source: Source) -> dict[str, Any]:
    fields = trial.dataset.as_input()
    fields.pop("path", None)  # where the images lie; what they are is the fingerprint
    return fields | {"fingerprint": source.fingerprints[source.training_split]}


def _step_input(step: str, **fields: Any) -> dict[str, Any]:
    return {"step": step, "version": VERSIONS[step], **fields}
