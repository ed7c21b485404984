"""Every required file of every kind of stored result, damaged in turn: found, named, never used, and made again."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pixelpick_ray.data import datasets
from pixelpick_ray.store import Store
from tests.support.launch import Outcome, launch, overriding
from tests.support.tiny_data import TINY_EXPERIMENT, TWO_STAGES, TinyDataset

pytestmark = pytest.mark.training

KINDS = ("fit", "pick", "evaluation", "split")
NOT_EQUAL = ("provenance.json", "manifest.json", "weights.json")  # they tell times

File = tuple[str, str, str]  # kind, key, name


WAYS: dict[str, Callable[[bytes], bytes | None]] = {
    "flipped": lambda content: bytes([byte ^ (at == len(content) // 2) for at, byte in enumerate(content)]),
    "truncated": lambda content: content[:-1],
    "emptied": lambda content: b"",
    "removed": lambda content: None,
}


OPTIONS = ("tiny.yaml", "--local", "--device", "cpu", *overriding(*TWO_STAGES))


def run(place: Path, *more: str) -> Outcome:
    done = launch(place, "run", *OPTIONS, *more)
    assert done.status == 0, done.out + done.err
    return done


def table(done: Outcome) -> list[str]:
    return [line for line in done.out.splitlines() if line.startswith("deeplabv3plus")]


def files(store: Path) -> list[File]:
    """All files of all results but weights, which are none of them."""
    found = [path.relative_to(store) for kind in KINDS for path in sorted((store / kind).rglob("*")) if path.is_file()]
    split = [(path.parts[0], path.parts[1], "/".join(path.parts[2:])) for path in found]
    return [file for file in split if not file[2].startswith("weights.")]


def payload(store: Path) -> dict[str, bytes]:
    return {"/".join(file): store.joinpath(*file).read_bytes() for file in files(store) if file[2] not in NOT_EQUAL}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The place of a small run of two stages, and its table."""
    import torch

    place, threads = tmp_path_factory.mktemp("undisturbed"), torch.get_num_threads()
    (place / "tiny.yaml").write_text(TINY_EXPERIMENT)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.DATASETS, "tiny", TinyDataset)
        found = table(run(place))
    torch.set_num_threads(threads)
    return place, found


@pytest.fixture
def place(
    undisturbed: tuple[Path, list[str]], tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A copy of the small run to be damaged."""
    monkeypatch.setitem(datasets.DATASETS, "tiny", TinyDataset)
    return Path(shutil.copytree(undisturbed[0], tmp_path / "copy"))


def check(place: Path, undisturbed: tuple[Path, list[str]], way: str, damaged: list[File]) -> None:
    """Damage files of different results; the same command finds, names and mends each."""
    root, store = place / "store", Store(place / "store")
    before = payload(root)
    for kind, key, name in damaged:
        path = root / kind / key / name
        content = WAYS[way](path.read_bytes())
        path.unlink() if content is None else path.write_bytes(content)
        assert not store.intact(kind, key)
        if name != "manifest.json":
            assert store.files(kind, key, [name]) is None  # no report uses it
    done = run(place)
    told = [line for line in done.out.splitlines() if line.startswith("DAMAGED ")]
    assert len(told) == len(Store(root).damaged()) == len(damaged)
    for kind, key, name in damaged:
        (line,) = [line for line in told if line.startswith(f"DAMAGED {kind}/{key}: ")]
        (aside,) = (root / "damaged").glob(f"{kind}-{key}-*")
        assert (aside / "problem.txt").read_text().strip() in line
        if (way, name) != ("flipped", "manifest.json"):  # it may seem to be the file whose digest it has
            assert line.startswith(f"DAMAGED {kind}/{key}: {name}: ")
        assert store.intact(kind, key)
    assert payload(root) == before  # the same keys, too: nothing was derived from what was damaged
    assert table(done) == undisturbed[1]


def check_nothing_is_left(place: Path) -> None:
    again = run(place)
    assert "DAMAGED" not in again.out
    assert "trained now: 0" in again.out


def in_turn(store: Path) -> Iterator[list[File]]:
    """One file of one result of each kind after another, and of every result and role of a file once.

    The results are such that none hides another: the fit of one stage, the evaluation and the pixels of another.
    """
    (path,) = (store / "experiments").glob("*/chains/*.json")
    record = json.loads(path.read_text())
    first, second = record["stages"]
    keys = {"fit": second["fit"], "evaluation": first["evaluations"]["val"], "pick": first["pick"]}
    keys["split"] = record["descriptions"]["training"]
    by_kind = {kind: [file for file in files(store) if file[:2] == (kind, key)] for kind, key in keys.items()}
    roles = {kind: list({Path(file[2]).parts[0]: file for file in found}.values()) for kind, found in by_kind.items()}
    for number in range(max(map(len, roles.values()))):
        yield [found[number] for found in roles.values() if number < len(found)]


def test_the_kinds_have_the_files_that_are_damaged_below(undisturbed: tuple[Path, list[str]]) -> None:
    batches = list(in_turn(undisturbed[0] / "store"))
    names = {kind: {Path(file[2]).parts[0] for batch in batches for file in batch if file[0] == kind} for kind in KINDS}
    always = {"input.json", "provenance.json", "manifest.json"}
    assert names == {
        "fit": {"training.json"} | always,
        "pick": {"pixels.npz", "statistics.json"} | always,
        "evaluation": {"confusion.npz", "predictions"} | always,
        "split": {"description.json", "images", "labels"} | always,
    }


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("way", WAYS)
def test_damage_is_found_named_and_mended_by_the_same_command(
    place: Path, undisturbed: tuple[Path, list[str]], way: str, number: int
) -> None:
    check(place, undisturbed, way, list(in_turn(place / "store"))[number])
    if number == 0:
        check_nothing_is_left(place)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_single_file_of_every_result_is_found_named_and_mended(
    place: Path, undisturbed: tuple[Path, list[str]], way: str
) -> None:
    for file in files(place / "store"):
        check(place, undisturbed, way, [file])
        shutil.rmtree(place / "store" / "damaged")
    check_nothing_is_left(place)


def test_missing_weights_are_no_damage(place: Path, undisturbed: tuple[Path, list[str]]) -> None:
    root = place / "store"
    shutil.rmtree(root / "fit")
    run(place, "--keep-weights", "all")
    for name in ("weights.safetensors", "weights.json"):
        kept = sorted(root.glob(f"fit/*/{name}"))
        assert len(kept) == 2
        for path in kept:
            path.unlink()
        assert "trained now: 0" in run(place).out
        done = run(place, "--keep-weights", "all")
        assert "2 to train (2 of them again" in done.out
        assert "trained now: 2" in done.out
        assert all(path.is_file() for path in kept)
        assert "DAMAGED" not in done.out
        assert Store(root).damaged() == []
        assert table(done) == undisturbed[1]


def test_a_lost_record_of_a_chain_is_written_again(place: Path, undisturbed: tuple[Path, list[str]]) -> None:
    """As after a kill between the last result and its record: all is stored, and the report does not know it."""
    (record,) = (place / "store" / "experiments").glob("*/chains/*.json")
    before = record.read_bytes()
    for content in (None, {**json.loads(before), "stages": json.loads(before)["stages"][:1]}):
        record.unlink() if content is None else record.write_text(json.dumps(content))
        done = run(place)
        assert "trained now: 0" in done.out
        assert record.read_bytes() == before
        assert table(done) == undisturbed[1]
