"""Where a store is: home folders, addresses with too few slashes, credentials that nobody may read."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pixelpick_ray.cli import app
from pixelpick_ray.errors import SpecError
from pixelpick_ray.store import Store, absolute
from pixelpick_ray.store.paths import without_credentials
from tests.support.cluster_experiment import KINDS, TINY
from tests.support.launch import launch


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("~/st") == str(tmp_path / "st")
    assert Store("~/st").path == tmp_path / "st"


@pytest.mark.parametrize("location", ["s3:/bucket/prefix", "gs:/bucket"])
def test_an_address_with_one_slash_is_no_folder(location: str) -> None:
    for use in (absolute, Store):
        with pytest.raises(SpecError, match=rf"--store {location}: give \w+://bucket.* or \./{location} for a folder"):
            use(location)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("s3://me:hush@bucket/a", "s3://bucket/a"),
        ("s3://bucket/a?region=x&secret_key=hush", "s3://bucket/a?region=x"),
        ("s3://bucket/a?region=x", "s3://bucket/a?region=x"),
        ("a folder@home", "a folder@home"),
    ],
)
def test_credentials_are_not_shown(location: str, shown: str) -> None:
    assert without_credentials(location) == shown


@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_the_shell_travel_with_a_job(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    here = {"PIXELPICK_STORE": "/my/store", "PIXELPICK_DATA": "my data", "PIXELPICK_CACHE_LIMIT": "9GB"}
    words = ["submit", "tiny.yaml", *KINDS[kind], "--dry-run", "--", "--store", "mine"]
    given = CliRunner().invoke(app, words, env=here).output
    assert "--store mine" in given
    assert "/my/store" not in given  # what is typed comes first
    assert "--data 'my data'" in given
    assert "--cache-limit 9GB" in given


@pytest.mark.parametrize("kind", KINDS)
def test_credentials_in_a_stores_address_are_refused_and_not_repeated(kind: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    done = launch(tmp_path, "submit", "tiny.yaml", *KINDS[kind], "--dry-run", "--", "--store", "s3://me:hush@bucket/a")
    assert done.status == 2
    assert "hush" not in done.out + done.err
    assert "--store s3://bucket/a: has credentials" in done.err
