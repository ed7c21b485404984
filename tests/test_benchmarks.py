"""The benchmarks: the baseline does the same work, and what is measured becomes lines and RESULTS.md."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import baseline, bench, instant, render, report
from benchmarks.goals import MEASURES
from benchmarks.measures import FIRST, RESNET, Bench
from benchmarks.scale import Job, Watch, lines_of, plan_of
from benchmarks.sharing import mapped_copies
from benchmarks.timing import compare, take_turns
from benchmarks.work import Frozen, Setting, Work, label_maps, make_work
from pixelpick_ray.active.acquisition import margin
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import load_experiment
from pixelpick_ray.engine.batches import IGNORED
from pixelpick_ray.models.segmentation import build_model, upsample
from pixelpick_ray.report.rows import load_results
from pixelpick_ray.store import Store
from tests.support.launch import ROOT

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.training]
SIZE = (32, 48)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def work() -> Work:
    return make_work(FIRST, SIZE, 4, CPU)


@pytest.mark.parametrize("setting", [FIRST, RESNET], ids=["deeplabv3plus", "fpn"])
def test_the_plain_network_is_the_projects_at_full_size(setting: Setting) -> None:
    spec = setting.load(SIZE).model
    model = build_model(spec, num_classes=5, data_path=Path("no-data"), seed=0, stage=0).eval()
    plain = baseline.plain_network(spec, 5).eval()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(plain(images), upsample(model(images), SIZE), rtol=1e-4, atol=1e-4)


def test_the_baseline_queries_the_best_pixels_of_its_pool(work: Work, tmp_path: Path) -> None:
    frozen = Frozen(work, 1, tmp_path)
    frozen.model.eval()
    prepared, facts = work.job.data.prepared, frozen.facts
    options: dict[str, Any] = {"pool_fraction": 0.0, "num_pixels": 20}
    asked = baseline.query_image(frozen.model, frozen.paths[0], frozen.taken[0], facts, CPU, **options)
    image = baseline.normalised(prepared.image(0), facts)[None]
    with torch.inference_mode():
        score = margin(frozen.model(image))[0].numpy().reshape(-1)
    score[frozen.taken[0].reshape(-1) | (prepared.label(0).reshape(-1) == facts.void_index)] = -np.inf
    assert frozen.taken[0].any()
    assert set(asked) == set(np.argsort(-score)[:20])


def test_the_baselines_parts_by_hand() -> None:
    logits = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(-baseline.margin_of(logits), margin(logits))
    truth, predicted = np.array([[0, 1, 11], [1, 1, 0]]), np.array([[0, 0, 1], [1, 1, 1]])
    assert baseline.count(truth, predicted, 2).tolist() == [[1, 1], [1, 2]]
    points = torch.tensor([[[0.0, 1.0], [1.2, 1.9]], [[1.0, 0.0], [0.0, 0.0]]])
    labels = torch.tensor([[3, 4], [5, IGNORED]])
    assert label_maps(points, labels, (2, 3), 9).tolist() == [[[9, 3, 9], [9, 9, 4]], [[9, 9, 9], [5, 9, 9]]]


def test_the_baselines_training_images_keep_their_labels_in_the_crop(work: Work, tmp_path: Path) -> None:
    frozen = Frozen(work, 2, tmp_path)
    spec = work.job.train.augment
    assert spec is not None
    still = spec.model_copy(update={"scale": (1.0, 1.0), "hflip": 1.0, "jitter": None, "grayscale": 0.0, "blur": None})
    image, target = replace(frozen.batches.dataset, spec=still)[0]
    expected = np.where(frozen.taken[0], work.job.data.prepared.label(0), frozen.facts.void_index)[:, ::-1]
    assert target.tolist() == expected.tolist()
    turned = np.ascontiguousarray(work.job.data.prepared.image(0)[:, ::-1])
    torch.testing.assert_close(image, baseline.normalised(turned, frozen.facts))


def test_contestants_take_turns_after_warming_up_and_are_compared_round_by_round() -> None:
    order: list[str] = []
    seconds = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, CPU)
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert compare([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == {"value": 2.0, "spread": [1.0, 3.0]}
    assert mapped_copies(2) == pytest.approx(1.0, abs=0.05)  # processes share a prepared split


def test_a_small_run_gives_valid_lines_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = Bench(CPU, SIZE, images=4, rounds=1, threads=torch.get_num_threads())
    assert bench.run(small, "training|inference", tmp_path) == 0
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert {line["name"] for line in lines} >= {"train_step_over_bare", "picking_over_bare", "evaluation_over_bare"}
    page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    for line in lines:
        assert line["value"] > 0
        assert line["spread"][0] <= line["value"] <= line["spread"][1]
        assert line["goal"] == MEASURES[line["name"]].goals.get("cpu")
        assert MEASURES[line["name"]].about in page
    assert render.read(tmp_path / "results" / "cpu.jsonl") == lines


def test_the_store_of_the_report_benchmark_has_every_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EPOCHS", "IMAGES"):
        monkeypatch.setattr(report, name, 2)
    monkeypatch.setattr("os.fsync", lambda fd: None)
    experiment, store = load_experiment(report.PUBLISHED, report.overrides_of(100)), Store(tmp_path)
    report.fill(store, experiment)
    found = load_results(store, [experiment])
    assert (len(found.fits), found.missing) == (50, ())  # ten acquisition settings at five budgets


def test_a_measurement_that_fails_loses_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Bench(CPU, SIZE, images=4, rounds=1, threads=1)

    def broken() -> Any:
        yield small.line("train_memory", "first", value=1.0)
        raise RuntimeError("out of order")

    good = {"broken": broken, "good": lambda: iter([small.line("data_copies", "second", value=1.0)])}
    monkeypatch.setattr(bench, "measurements", lambda _: good)
    assert bench.run(small, "", tmp_path) == 1
    first, error, second = (json.loads(text) for text in capsys.readouterr().out.splitlines())
    assert (first["name"], second["name"]) == ("train_memory", "data_copies")
    assert error == {"name": "broken", "error": "RuntimeError: out of order"}


def test_results_keep_other_devices_and_say_what_holds_and_what_is_not_measured(tmp_path: Path) -> None:
    common = {"setting": "a network", "torch": "2.11", "code": "0" * 40, "threads": 2}
    cpu = common | {"device": "cpu", "kind": "cpu"}
    gpu = common | {"device": "NVIDIA H200", "kind": "cuda"}
    ratio = {"name": "train_step_over_bare", "unit": "ratio"}
    faster = {"name": "bare_train_step_against_plain", "unit": "times faster", "value": 1.4, "goal": 1.3}
    render.update([gpu | ratio | {"value": 1.2, "goal": 1.1, "spread": [1.1, 1.3]}], tmp_path)
    for value in (1.5, 1.02):
        render.update([cpu | ratio | {"value": value, "goal": 1.05, "spread": [1.0, 1.6]}], tmp_path)
    skipped = {"name": "start_fresh", "unit": "s", "skipped": "Ray is not installed"}
    render.update([cpu | faster, gpu | skipped], tmp_path)
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"cpu.jsonl", "nvidia-h200.jsonl"}
    page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    for text in (
        "1.02 [1, 1.6] | ≤ 1.05 | yes",
        "1.4 times faster | ≥ 1.3 | yes",
        "1.2 [1.1, 1.3] | ≤ 1.1 | **no**",
        "not measured: Ray is not installed",
    ):
        assert text in page
    assert "1.5 [" not in page
    missing = page.split("## Not measured on a GPU yet")[1]
    assert ("`start_fresh`" in missing, "`train_step_over_bare`" in missing) == (True, False)


# Many chains on Ray


def test_a_job_reaches_the_workers_as_the_identities_and_lengths_of_its_chains(tmp_path: Path) -> None:
    plan = plan_of(chains=6, stages=3)
    job = Job(plan, list(plan.chains), Execution(tmp_path, "store", tmp_path, runs_path=tmp_path))
    assert len(plan.chains) == 6
    assert plan.num_fits == 15  # the first one is shared by the two strategies of a seed
    given = pickle.loads(pickle.dumps(job))
    assert given == instant.Work([(chain.id, 3) for chain in plan.chains], str(tmp_path / "gate"))
    program = "import sys, benchmarks.instant; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_a_chains_time_is_what_is_left_of_it_without_its_stages(tmp_path: Path) -> None:
    def watched(seconds_a_chain: float) -> Watch:
        watch = Watch(tmp_path, fill=2)
        watch.done = [50.0 * (at < 2) + at * seconds_a_chain for at in range(10)]  # starting workers does not count
        watch.processor = [at * seconds_a_chain / 2 for at in range(10)]
        watch.megabytes = [100.0 + 2 * at for at in range(10)]
        watch.began = [0.0, 7.0, *([50.0] * 8)]
        return watch

    few, more = watched(0.5), watched(0.9)
    lines = {line["name"]: line for line in lines_of({1: few, 3: more}, 10, 4, (2.0, 200.0))}
    assert lines["runner_stage"]["milliseconds"] == {"busy": pytest.approx(100)}
    assert {name: line["value"] for name, line in lines.items()} == pytest.approx(
        {"runner_chain": 300, "runner_stage": 200, "runner_memory": 2000, "runner_filling": 7, "fake_node": 200}
    )
    assert lines.keys() <= MEASURES.keys()


@pytest.mark.slow
def test_a_small_run_gives_every_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.scale", "--nodes", "2", "--chains", "20", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "results" / "cpu.jsonl").read_text(encoding="utf-8").splitlines()
    names = ["runner_chain", "runner_stage", "runner_memory", "runner_filling", "fake_node"]
    assert [json.loads(line)["name"] for line in lines] == names
