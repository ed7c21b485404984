"""Records of a store: typed, with a digest; a damaged one is named, set aside and made again, never believed."""

import json
import random
import shutil
from pathlib import Path

import pytest

from pixelpick_ray.config.experiment import load_experiment
from pixelpick_ray.errors import DamagedError
from pixelpick_ray.planning import claim_name, make_plan, progress_of
from pixelpick_ray.report.chains import load_chains
from pixelpick_ray.report.rows import load_results
from pixelpick_ray.status import status_of
from pixelpick_ray.store import Store, paths
from pixelpick_ray.store.records import ChainRecord, ExperimentRecord, read_chain, write_chain
from tests.support.launch import ROOT
from tests.support.stores import do_steps, execution_at, record_of, tiny_plan

FLIPS = 600


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of an experiment, and nothing else of it: what is stored is not looked at here."""
    folder = tmp_path_factory.mktemp("stored")
    plan = tiny_plan()
    store = Store(folder / "store")
    claim_name(plan, store)
    for chain in plan.chains:
        record = record_of(chain.trial, class_names=("sky", "road"), initial="a" * 64, questions=("b" * 64,))
        write_chain(store, plan.experiment, chain.id, record)
    return folder


def test_six_hundred_flipped_bits_are_noticed(stored: Path, tmp_path: Path) -> None:
    """Each in one of the records; what is read is what was written, or is named as damaged."""
    plan, source = tiny_plan(), Store(stored / "store")
    relative = [paths.chain_record(plan.experiment, chain.id) for chain in plan.chains]
    kinds: dict[str, type[ChainRecord] | type[ExperimentRecord]] = dict.fromkeys(relative, ChainRecord)
    kinds[paths.experiment_record(paths.experiment_folder(plan.experiment))] = ExperimentRecord
    written = {path: source.find_record(path, kind) for path, kind in kinds.items()}
    assert None not in written.values()
    draws, noticed = random.Random(1), 0
    for _ in range(FLIPS):
        store = Store(tmp_path / "store")
        path = draws.choice(sorted(kinds))
        content = bytearray((source.path / path).read_bytes())
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        (store.path / path).parent.mkdir(parents=True, exist_ok=True)
        (store.path / path).write_bytes(bytes(content))
        found = store.find_record(path, kinds[path])
        assert found is None or found == written[path]
        assert (found is None) == (len(store.found_damaged) == 1)
        noticed += found is None
    assert noticed > 0.7 * FLIPS  # the others changed spaces between fields, and nothing that is read


def test_commands_that_read_tell_of_a_damaged_record_and_change_nothing(stored: Path, tmp_path: Path) -> None:
    plan = tiny_plan()
    shutil.copytree(stored / "store", tmp_path / "store")
    execution = execution_at(tmp_path, tmp_path / "absent")
    path = Path(execution.store) / paths.chain_record(plan.experiment, plan.chains[0].id)
    path.write_bytes(path.read_bytes().replace(b"sky", b"sea"))
    before = path.read_bytes()
    (line,) = progress_of(plan, execution).damaged
    assert line.endswith(f"{plan.chains[0].id}.json: other content than was written (the next run makes it again)")
    assert status_of(plan, execution).damaged == (line,)
    results = load_results(Store(execution.store), [plan.experiment])
    chains = load_chains(Store(execution.store), results)
    assert [chain.class_names for chain in chains] == [(), ("sky", "road")]
    assert path.read_bytes() == before


def test_a_damaged_record_is_set_aside_when_it_is_written_again(tmp_path: Path) -> None:
    store, plan = Store(tmp_path / "store"), tiny_plan()
    chain = plan.chains[0]
    record = record_of(chain.trial)
    write_chain(store, plan.experiment, chain.id, record)
    path = store.path / paths.chain_record(plan.experiment, chain.id)
    path.write_bytes(path.read_bytes()[:-9])
    damaged = path.read_bytes()
    assert read_chain(store, plan.experiment, chain.id) is None
    write_chain(store, plan.experiment, chain.id, record)
    assert read_chain(store, plan.experiment, chain.id) == record
    (line,) = store.damaged()
    assert f"chains/{chain.id}.json: is not JSON" in line
    assert "(set aside as damaged/record-" in line
    (aside,) = (store.path / "damaged").iterdir()
    assert (aside / "record.json").read_bytes() == damaged


def test_the_digest_is_of_everything_else_and_records_of_older_stores_have_none(tmp_path: Path) -> None:
    store, path = Store(tmp_path), tmp_path / "a.json"
    store.write_record("a.json", {"reached": 3})
    assert json.loads(path.read_text()).keys() == {"reached", "digest"}
    path.write_text(path.read_text().replace("3", "4", 1))
    with pytest.raises(DamagedError, match=r"a\.json: is damaged: other content than was written; put back the one"):
        store.read_record("a.json")
    path.write_text('{"experiment": {}, "trials": ["1"]}')
    assert store.find_record("a.json", ExperimentRecord) == ExperimentRecord(experiment={}, trials=("1",))
    path.write_text('{"experiment": {}, "trails": ["1"]}')
    assert store.find_record("a.json", ExperimentRecord) is None
    assert store.damaged() == ["a.json: is not valid (trials: Field required) (the next run makes it again)"]


def test_the_results_made_on_a_gpu_are_found_and_used(tmp_path: Path) -> None:
    """Their keys come from recorded fingerprints; the records are older than digests."""
    shutil.copytree(ROOT / "results" / "camvid-mobilenet" / "store", tmp_path / "store")
    plan = make_plan(load_experiment(ROOT / "experiments" / "camvid-mobilenet.yaml"))
    execution = execution_at(tmp_path, tmp_path / "absent")
    progress = progress_of(plan, execution)
    (row,) = progress.stages.values()
    assert (row[0].fit_stored, row[0].evaluated, row[0].pick_stored) == (True, True, False)
    assert progress.initial[plan.chains[0].id][1]
    assert progress.damaged == ()
    assert progress.stored_fits == 1


def test_hand_made_stores_are_what_a_walk_leaves(write_camvid: object, tmp_path: Path) -> None:
    plan = tiny_plan()
    execution = execution_at(tmp_path, write_camvid(splits=("train", "test")))  # type: ignore[operator]
    keys = do_steps(plan, plan.chains[0], execution)
    record = read_chain(Store(execution.store), plan.experiment, plan.chains[0].id)
    assert record is not None
    assert [stage.fit for stage in record.stages] == [keys[f"fit {stage}"] for stage in range(3)]
    assert record.picks == (keys["pick"], keys["pick 0"], keys["pick 1"], None)
