"""Records of a store: typed, with a digest; a damaged one is named, set aside and made again, never believed."""

import json
import random
import shutil
from pathlib import Path

import pytest

from pixelpick_ray.config.experiment import load_experiment
from pixelpick_ray.errors import DamagedError
from pixelpick_ray.planning import make_plan, progress_of
from pixelpick_ray.report.chains import load_chains
from pixelpick_ray.report.rows import load_results
from pixelpick_ray.status import status_of
from pixelpick_ray.store import Store, paths
from pixelpick_ray.store.records import ChainRecord, ExperimentRecord, read_chain, write_chain
from tests.support.launch import ROOT
from tests.support.stores import execution_at, record_of, tiny_plan

FLIPS = 600


def test_six_hundred_flipped_bits_are_noticed(tmp_path: Path) -> None:
    """What is read is what was written, or is named as damaged."""
    chain = tiny_plan().chains[0]
    record = record_of(chain.trial, class_names=("sky", "road"), initial="a" * 64, questions=("b" * 64,))
    Store(tmp_path).write_record("a.json", record.model_dump(mode="json"))
    written, draws, noticed = (tmp_path / "a.json").read_bytes(), random.Random(1), 0
    for _ in range(FLIPS):
        content, store = bytearray(written), Store(tmp_path)
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        (tmp_path / "a.json").write_bytes(bytes(content))
        found = store.find_record("a.json", ChainRecord)
        assert found in (None, record)
        assert (found is None) == (len(store.found_damaged) == 1)
        noticed += found is None
    assert noticed > 0.7 * FLIPS  # the others changed spaces between fields, and nothing that is read


def test_a_damaged_record_is_told_by_readers_and_set_aside_by_a_writer(tmp_path: Path) -> None:
    plan, execution = tiny_plan(), execution_at(tmp_path, tmp_path / "absent")
    store = Store(execution.store)
    records = {chain.id: record_of(chain.trial, class_names=("sky", "road")) for chain in plan.chains}
    for chain_id, record in records.items():
        write_chain(store, plan.experiment, chain_id, record)
    first = plan.chains[0].id
    path = store.path / paths.chain_record(plan.experiment, first)
    damaged = path.read_bytes().replace(b"sky", b"sea")
    path.write_bytes(damaged)
    (line,) = progress_of(plan, execution).damaged
    assert line.endswith(f"{first}.json: content differs from what was written (the next run will remake it)")
    assert status_of(plan, execution).damaged == (line,)
    chains = load_chains(store, load_results(store, [plan.experiment]))
    assert [chain.class_names for chain in chains] == [(), ("sky", "road")]
    assert path.read_bytes() == damaged
    assert read_chain(store, plan.experiment, first) is None
    write_chain(store, plan.experiment, first, records[first])
    assert read_chain(store, plan.experiment, first) == records[first]
    (line,) = store.damaged()
    assert f"chains/{first}.json: content differs from what was written (set aside as damaged/record-" in line
    (aside,) = (store.path / "damaged").iterdir()
    assert (aside / "record.json").read_bytes() == damaged


def test_the_digest_is_of_everything_else_and_records_of_older_stores_have_none(tmp_path: Path) -> None:
    store, path = Store(tmp_path), tmp_path / "a.json"
    store.write_record("a.json", {"reached": 3})
    assert json.loads(path.read_text()).keys() == {"reached", "digest"}
    changed = path.read_bytes().replace(b"3", b"4", 1)
    for content, told in (
        (changed, r"content differs from what was written\); restore it"),
        (b"{", r"is not JSON .*remove it and run again"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "is not a mapping"),
    ):
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=rf"a\.json: is damaged \({told}"):
            store.read_record("a.json")
    path.write_text('{"experiment": {}, "trials": ["1"]}')
    assert store.find_record("a.json", ExperimentRecord) == ExperimentRecord(experiment={}, trials=("1",))
    path.write_text('{"experiment": {}, "trails": ["1"]}')
    assert store.find_record("a.json", ExperimentRecord) is None
    assert store.damaged() == ["a.json: is not valid (trials: Field required) (the next run will remake it)"]


def test_the_results_made_on_a_gpu_are_found_and_used(tmp_path: Path) -> None:
    """Their keys come from recorded fingerprints; the records are older than digests."""
    shutil.copytree(ROOT / "results" / "camvid-mobilenet" / "store", tmp_path / "store")
    plan = make_plan(load_experiment(ROOT / "experiments" / "camvid-mobilenet.yaml"))
    progress = progress_of(plan, execution_at(tmp_path, tmp_path / "absent"))
    (row,) = progress.stages.values()
    assert (row[0].fit_stored, row[0].evaluated, row[0].pick_stored) == (True, True, False)
    assert progress.initial[plan.chains[0].id][1]
    assert (progress.damaged, progress.stored_fits) == ((), 1)
