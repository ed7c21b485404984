"""What somebody may have been sent is read within limits, or refused: in no time, and with the place."""

import os
import time
from pathlib import Path

import pytest

from pixelpick_ray.config.experiment import load_experiment
from pixelpick_ray.config.model import ModelSpec
from pixelpick_ray.config.trial import DatasetSpec
from pixelpick_ray.config.yaml_text import file_bytes, read_json, read_text, read_yaml
from pixelpick_ray.data.datasets import open_dataset
from pixelpick_ray.data.weights import weights_digest
from pixelpick_ray.errors import DataError, SpecError

TIMES = "a: &a [1, 2]\n" + "".join(
    f"a{at}: &a{at} [{', '.join([f'*a{at - 1}' if at else '*a'] * 9)}]\n" for at in range(9)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"a{at}: &a{at} {{<<: [{', '.join([f'*a{at - 1}' if at else '*a'] * 9)}]}}\n" for at in range(12)
)
IN_ONE_ANOTHER = "a: &a [1]\n" + "".join(f"a{at}: &a{at} [{f'*a{at - 1}' if at else '*a'}]\n" for at in range(2000))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TIMES, r"x: line 6, column 5 is not valid YAML: it has more than 100000 values, including those repeated"),
        (MERGED, r"more than 100000 values, including those repeated by aliases"),
        (IN_ONE_ANOTHER, r"nested more than 50 deep, aliases"),
        ("[" * 5000, r"line 1, column 51 is not valid YAML: it is nested more than 50 deep"),
        ("{a: " * 5000, r"nested more than 50 deep"),
        ("a: " + "9" * 20000, r"line 1, column 4 is not valid YAML: a number has 20000 characters; if it is text"),
        ("a: 0x" + "f" * 20000, r"a number has 20002 characters"),
        ("a: " + "b" * 2**20, r"x: has 1048579 characters, but YAML is limited to 1048576"),
        ("a: 2001-99-99", r"x: has a value that cannot be read \(month must be in"),
        ("a: !!bool what", r"x: has a value that cannot be read"),
        ("? [1, 2]\n: 3", r"line 1, column 3 is not valid YAML: found unhashable key"),
    ],
)
def test_yaml_beyond_the_limits_is_refused_at_once(text: str, told: str) -> None:
    start = time.process_time()
    with pytest.raises(SpecError, match=told):
        read_yaml(text, "x")
    assert time.process_time() - start < 5


def test_yaml_within_the_limits_is_read() -> None:
    assert read_yaml("a: &a [1, 5e-4]\nb: [*a, *a]\nc: '" + "9" * 20000 + "'", "x")["b"] == [[1, 5e-4], [1, 5e-4]]
    assert read_yaml("[" * 49 + "1" + "]" * 49, "x")
    assert len(read_yaml("".join(f"k{at}: {at}\n" for at in range(3000)), "x")) == 3000


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "more than 50 deep"),
        ('{"a": ' * 60 + "1" + "}" * 60, "more than 50 deep"),
        ("9" * 20000, "digits"),
        ("[NaN]", "NaN is not a number in JSON"),
        ("{", "Expecting property name"),
    ],
)
def test_json_beyond_the_limits_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_json(text)
    assert read_json('{"a": [1, {"b": "c"}]}') == {"a": [1, {"b": "c"}]}


def test_what_is_no_file_is_told_and_not_waited_for(tmp_path: Path) -> None:
    """Pipes in the place of an experiment, a description, weights; what a shell opens is read."""
    os.mkfifo(tmp_path / "mine.yaml")
    with pytest.raises(SpecError, match=r"mine\.yaml: cannot be read \(it is a pipe or a device, not a file\)"):
        load_experiment(tmp_path / "mine.yaml")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "dataset.yaml")
    with pytest.raises(DataError, match=r"dataset\.yaml: cannot be read \(it is a pipe or"):
        open_dataset(DatasetSpec(name="folder", path="pipe"), tmp_path)
    (tmp_path / "aliases").mkdir()
    (tmp_path / "aliases" / "dataset.yaml").write_text(TIMES)
    with pytest.raises(DataError, match=r"dataset\.yaml: line 6, .* more than 100000 values"):
        open_dataset(DatasetSpec(name="folder", path="aliases"), tmp_path)
    os.mkfifo(tmp_path / "weights")
    with pytest.raises(DataError, match=r"no weights at .*weights \(it is a folder, a pipe or a device"):
        weights_digest(ModelSpec(backbone="resnet18", pretrained="file:weights"), tmp_path)
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=r"not a file|Is a directory"):
            file_bytes(path)
    reader, writer = os.pipe()
    os.write(writer, b"\xef\xbb\xbfa: 1")
    os.close(writer)
    assert read_text(Path(f"/dev/fd/{reader}")) == "a: 1"
    os.close(reader)
