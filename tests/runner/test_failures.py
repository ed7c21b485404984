"""What is tried again, what is given up, and what a person is told."""

import pickle

import pytest
import torch

from pixelpick_ray.errors import DataError, RunError, SpecError, StoreError
from pixelpick_ray.runner.failures import explain, gives_up


class OutOfMemoryError(Exception):
    """Ray's, by name: the policy does not import ray."""


NO_MEMORY = "out of memory (2 GiB wanted); lower train.batch_size or the sizes, or give the trial a whole GPU"
GIVEN_UP: list[tuple[Exception, str]] = [  # would fail the same way
    (DataError("a.png: cannot be decoded\nmore"), "a.png: cannot be decoded"),
    (SpecError("train.batch_size: 1 is too small"), "train.batch_size: 1 is too small"),
    (RunError("stage 0: the loss is nan"), "stage 0: the loss is nan"),
    (MemoryError("2 GiB wanted"), NO_MEMORY),
    (torch.OutOfMemoryError("2 GiB wanted\nmore"), NO_MEMORY),
    (OutOfMemoryError("2 GiB wanted"), NO_MEMORY),
]
TRIED_AGAIN: list[tuple[Exception, str]] = [
    (ConnectionResetError("peer"), "ConnectionResetError: peer"),
    (RuntimeError("NCCL error"), "RuntimeError: NCCL error"),
    (OSError("stale file handle"), "OSError: stale file handle"),
    (AssertionError(), "AssertionError: "),
    (StoreError("store/fit: input/output error"), "store/fit: input/output error"),
]


@pytest.mark.parametrize(("error", "told"), GIVEN_UP + TRIED_AGAIN)
def test_an_error_is_explained_in_a_line_with_where_it_was_and_given_up_or_tried_again(
    error: Exception, told: str
) -> None:
    assert gives_up(error) == ((error, told) in GIVEN_UP)
    assert explain(error) == told
    error = type(error)(*error.args)
    error.where = "stage 2, training epoch 3"  # type: ignore[attr-defined]
    assert explain(error) == (told if told.startswith("stage") else f"stage 2, training epoch 3: {told}")
    assert explain(pickle.loads(pickle.dumps(error))) == explain(error)  # as from another process


def test_too_little_memory_on_a_cpu_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    assert gives_up(raised.value)
    assert explain(raised.value).startswith("out of memory (")
