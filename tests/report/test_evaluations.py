"""Reading evaluations: arrays as numpy reads them, and the same from one process and from several."""

import io
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pixelpick_ray.report import evaluations
from pixelpick_ray.report.evaluations import Evaluation, read_arrays, read_evaluations
from tests.support.study import Study, matrix

ARRAYS = {
    "counts": np.arange(24, dtype=np.int64).reshape(2, 3, 4),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "other byte order": np.array([1.5, -2.0], dtype=">f4"),
    **{"empty": np.zeros((0, 3)), "one number": np.array(7), "names": np.array(["a", "bcd"])},
    "fields": np.zeros(2, dtype=[("y", "<i4"), ("x", "<i4")]),
}


def npz(**arrays: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_are_those_that_numpy_reads(kind: str) -> None:
    content = npz(values=ARRAYS[kind], other=np.arange(3))
    found = read_arrays(content)
    with np.load(io.BytesIO(content), allow_pickle=False) as expected:
        assert list(found) == expected.files
        for name, array in expected.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(found[name], array)
    with pytest.raises(ValueError, match="an array of objects"):
        read_arrays(npz(values=np.array([{}], dtype=object)))


def plain(found: dict[str, Evaluation | str]) -> dict[str, Any]:
    return {
        key: one if isinstance(one, str) else {name: np.asarray(value).tolist() for name, value in asdict(one).items()}
        for key, one in found.items()
    }


def test_several_processes_read_what_one_reads(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = "evaluate={splits: {test: {}, val: {}}, report: test, when: every_epoch}"
    results = study.filled(lambda trial: [matrix(40 + trial.seed), matrix(60)], splits, code="abc")
    keys = [reading.evaluation_key for reading in results.readings]
    (study.store.folder("evaluation", keys[0]) / "confusion.npz").write_bytes(b"damaged")
    wanted = dict.fromkeys([*keys, "0" * 64], ("sky", "road"))
    alone, fits = read_evaluations(study.store, wanted, processes=1)
    monkeypatch.setattr(evaluations, "READ_ALONE", 2)
    together, same_fits = read_evaluations(study.store, wanted, processes=2)
    assert list(plain(together).items()) == list(plain(alone).items())
    assert same_fits == fits
    assert len(fits) == 6
    absent = {f"evaluation {key[:16]} is absent or damaged" for key in (keys[0], "0" * 64)}
    assert {one for one in alone.values() if isinstance(one, str)} == absent
