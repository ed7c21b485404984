"""The page about kills: what the logs say, and what did not hold first of all."""

import json
from pathlib import Path

from tests.support.fault_summary import read, summarise


def test_the_page_counts_kills_by_part_and_phase_and_names_every_problem(tmp_path: Path) -> None:
    kill = {"study": "s, 0", "life": 0, "what": "rank", "phase": "fit", "seconds_to_recovery": 4.0}
    life = {"study": "s, 0", "life": 0, "seconds": 90.0, "undisturbed_seconds": 30.0, "commands": 3}
    life |= {"epochs_repeated": 1, "problems": [], "date": "2026-01-02", "machine": "2 CPU cores"}
    kills = [kill, kill | {"seconds_to_recovery": 8.0}, kill | {"what": "driver", "phase": ""}]
    path = tmp_path / "s-0.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*kills, life]))
    page = summarise(read(tmp_path))
    assert "**3 kills in 1 lives of 1 studies.** All of it held every time." in page
    assert "| one rank of two |  | 2 |  |  |  |  |  | 2 |" in page
    assert "| all |  | 2 |  |  |  |  | 1 | 3 |" in page
    assert "| one rank of two | 2 | 6.0 | 8.0 |" in page
    assert "| s, 0 | 3 | 3 | 1 | 90 | 30 |" in page
    bad = summarise([*kills, life | {"problems": ["pick/k differs"]}])
    assert "- s, 0: pick/k differs" in bad
    assert "held every time" not in bad
