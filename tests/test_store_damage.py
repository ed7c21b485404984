"""Every required file of every kind of stored result, damaged in turn: found, named, never used, and made again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pixelpick_ray.store import Store
from tests.support.launch import Outcome, launch, overriding
from tests.support.tiny_data import TINY_EXPERIMENT, TWO_STAGES

pytestmark = [pytest.mark.training, pytest.mark.usefixtures("tiny")]

File = tuple[str, str, str]  # kind, key, name
KINDS = ("fit", "pick", "evaluation", "split")
BATCHES = 6
NOT_EQUAL = ("provenance.json", "manifest.json", "weights.json")  # they tell times
WAYS: dict[str, Callable[[bytes], bytes | None]] = {
    "flipped": lambda content: bytes([byte ^ (at == len(content) // 2) for at, byte in enumerate(content)]),
    "truncated": lambda content: content[:-1],
    "removed": lambda content: None,
}


def run(place: Path) -> Outcome:
    done = launch(place, "run", "tiny.yaml", "--local", "--device", "cpu", *overriding(*TWO_STAGES))
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
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny: None) -> tuple[Path, list[str]]:
    """The place of a small run of two stages, and its table."""
    place = tmp_path_factory.mktemp("undisturbed")
    (place / "tiny.yaml").write_text(TINY_EXPERIMENT)
    return place, table(run(place))


@pytest.fixture
def place(undisturbed: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A copy of the small run to be damaged."""
    return Path(shutil.copytree(undisturbed[0], tmp_path / "copy"))


def in_turn(store: Path) -> list[list[File]]:
    """Every file of one result of each kind, once: batches of one file of each.

    The results are such that none hides another: the fit of one stage, the evaluation and the pixels of another.
    """
    (path,) = (store / "experiments").glob("*/chains/*.json")
    record = json.loads(path.read_text())
    first, second = record["stages"]
    keys = {"fit": second["fit"], "evaluation": first["evaluations"]["val"], "pick": first["pick"]}
    keys["split"] = record["descriptions"]["training"]
    found = [
        {Path(file[2]).parts[0]: file for file in files(store) if file[:2] == (kind, keys[kind])} for kind in KINDS
    ]
    always = {"input.json", "provenance.json", "manifest.json"}
    own = {"training.json"}, {"pixels.npz", "statistics.json"}, {"confusion.npz", "predictions"}
    assert [roles.keys() - always for roles in found] == [*own, {"description.json", "images", "labels"}]
    assert all(roles.keys() > always for roles in found)
    return [[list(roles.values())[at] for roles in found if at < len(roles)] for at in range(BATCHES)]


@pytest.mark.parametrize("batch", [*range(BATCHES), pytest.param("each file alone", marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", WAYS)
def test_damage_is_found_named_and_mended_by_the_same_command(
    place: Path, undisturbed: tuple[Path, list[str]], way: str, batch: int | str
) -> None:
    root = place / "store"
    before = payload(root)
    for damaged in [in_turn(root)[batch]] if isinstance(batch, int) else [[file] for file in files(root)]:
        store = Store(root)
        for kind, key, name in damaged:
            path = root / kind / key / name
            content = WAYS[way](path.read_bytes())
            path.unlink() if content is None else path.write_bytes(content)
            assert not store.intact(kind, key)
            assert name == "manifest.json" or store.files(kind, key, [name]) is None  # no report uses it
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
        shutil.rmtree(root / "damaged")
    if batch == 0:
        again = run(place).out
        assert ("DAMAGED" in again, "trained now: 0" in again) == (False, True)
