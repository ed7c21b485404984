"""Write ``docs/faults.md`` from all studies' logs: ``python docs/update_faults.py build/faults docs/faults.md``."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

PHASES = ("start", "fit", "evaluate", "score", "publish", "report", "")
PARTS = {
    "driver": "driver, `launch.py run`",
    "trial": "process of a trial",
    "rank": "one rank of two",
    "raylet": "raylet of a node of two",
    "report": "`launch.py report`",
}
INTRODUCTION = """# Kills

`make faults` writes this page from the logs that it leaves in `build/faults`. Each study runs one command,
`launch.py run`, in an empty folder. SIGKILL ends a process that the command has started, the command itself, or a node
of the cluster that it has joined. Whenever the command has ended, the study runs it again, until its exit status is 0.
The study's name determines what is killed, in which phase and when. The phase at the moment of the kill comes from the
workers' own logs. Every epoch of a fit is saved (`--checkpoint-minutes 0.0001`), so a kill costs at most one epoch.

After each life of a study, its results are compared with a run without kills on as many ranks. All of this must hold:

- Picks, confusion matrices, `table.md` and `table.csv` are the same bytes.
- No fit or pick was started after it was stored, or by two processes at once.
- No fit repeated more than one epoch each time that it was started again.
- No process, placement group, lease, unfinished fit or partial folder is left.
"""


def summarise(lines: Sequence[dict[str, Any]]) -> str:
    kills, lives = [line for line in lines if "what" in line], [line for line in lines if "problems" in line]
    problems = [f"- {life['study']}: {text}" for life in lives for text in life["problems"]]
    result = "All of it held every time." if not problems else "What did not hold:\n\n" + "\n".join(problems)
    dates, machines = ({life[name] for life in lives} for name in ("date", "machine"))
    studies = len({life["study"] for life in lives})
    return "\n".join(
        [
            INTRODUCTION,
            f"**{len(kills)} kills in {len(lives)} lives of {studies} studies.** {result}\n",
            f"{', '.join(sorted(machines))}; {' to '.join(sorted({min(dates), max(dates)}))}.\n",
            "## What was killed, in which phase, and the time until work resumed\n",
            "Seconds from the kill to the first step of the process that took over. A driver has to be started again,",
            "join or start a cluster, and place the chains. A lost node is noticed after five seconds.\n",
            *_table(kills),
            "",
        ]
    )


def _table(kills: Sequence[dict[str, Any]]) -> list[str]:
    names = ["killed", *(phase or "between two" for phase in PHASES), "all", "median", "longest"]
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    for part, text in PARTS.items():
        mine = [kill for kill in kills if kill["what"] == part]
        seconds = [kill["seconds_to_recovery"] for kill in mine]
        counts = Counter(kill["phase"] for kill in mine)
        last = [str(len(mine)), f"{median(seconds):.1f}", f"{max(seconds):.1f}"] if mine else ["", "", ""]
        lines.append([text, *(str(counts[phase] or "") for phase in PHASES), *last])
    return [f"| {' | '.join(cells)} |" for cells in lines]


if __name__ == "__main__":
    logs = [path.read_text(encoding="utf-8") for path in sorted(Path(sys.argv[1]).glob("*.jsonl"))]
    lines = [json.loads(line) for text in logs for line in text.splitlines()]
    Path(sys.argv[2]).write_text(summarise(lines), encoding="utf-8")
