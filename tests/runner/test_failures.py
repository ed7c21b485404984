"""What is tried again, what is given up, and what a person is told."""

import pickle
from typing import Any

import pytest
import torch

from pixelpick_ray.errors import DataError, RunError, SpecError, StoreError
from pixelpick_ray.runner.failures import explain, gives_up


class OutOfMemoryError(Exception):
    """Ray's, by name: the policy does not import ray."""


def allocate_too_much() -> Exception:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    return raised.value


@pytest.mark.parametrize(
    "error",
    [
        DataError("a.png: cannot be decoded"),
        SpecError("train.batch_size: 1 is too small"),
        RunError("stage 0: the loss is nan"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        OutOfMemoryError("node is low on memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_would_fail_the_same_way_is_given_up(error: Exception) -> None:
    assert gives_up(error)


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError("peer"), RuntimeError("NCCL error"), OSError("stale file handle"), KeyError("x")],
    ids=lambda error: type(error).__name__,
)
def test_anything_else_is_worth_another_try(error: Exception) -> None:
    assert not gives_up(error)
    assert explain(error) == f"{type(error).__name__}: {error}"


def test_a_store_that_cannot_be_reached_for_a_moment_is_worth_another_try() -> None:
    assert not gives_up(StoreError("store/fit: input/output error"))


def test_the_message_of_an_own_error_stands_alone() -> None:
    assert explain(DataError("a.png: cannot be decoded\nmore")) == "a.png: cannot be decoded"


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("2 GiB wanted\nmore"), MemoryError("2 GiB wanted"), OutOfMemoryError("2 GiB wanted")],
)
def test_too_little_memory_is_told_with_a_remedy(error: Exception) -> None:
    assert explain(error) == (
        "out of memory (2 GiB wanted); lower train.batch_size or the sizes, or give the trial a whole GPU"
    )


def test_too_little_memory_on_a_cpu_is_recognised() -> None:
    error = allocate_too_much()
    assert gives_up(error)
    assert explain(error).startswith("out of memory (")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            MemoryError("2 GiB wanted"),
            "stage 2, training epoch 3: out of memory (2 GiB wanted); lower train.batch_size",
        ),
        (DataError("a.png: cannot be decoded"), "stage 2, training epoch 3: a.png: cannot be decoded"),
        (RunError("stage 2: the score is not finite"), "stage 2: the score is not finite"),
    ],
)
def test_an_error_says_where_it_was(error: Any, told: str) -> None:
    error.where = "stage 2, training epoch 3"
    assert explain(error).startswith(told)
    assert explain(pickle.loads(pickle.dumps(error))) == explain(error)  # as from another process


def test_an_error_without_a_message_is_named() -> None:
    assert explain(AssertionError()) == "AssertionError: "
