"""Run all benchmarks: ``python -m benchmarks.bench`` prints one JSON object per line and writes ``RESULTS.md``.

A failed measurement is reported on a line of its own, the others continue, and the exit status is 1.
"""

import argparse
import json
import re
import sys
import traceback
from pathlib import Path

from benchmarks import render
from benchmarks.measures import Bench, measurements
from pixelpick_ray.cli.options import parse_size
from pixelpick_ray.engine.host import prepare_process
from pixelpick_ray.errors import SpecError
from pixelpick_ray.runner.local import choose_device

FOLDER = Path(__file__).resolve().parent
IMAGES = {"cpu": 8, "cuda": 184}


def run(bench: Bench, select: str, folder: Path) -> int:
    """Run the measurements that match the pattern, printing and storing each line at once; return how many failed."""
    failed = 0
    for name, measurement in measurements(bench).items():
        if not re.search(select, name):
            continue
        try:
            for line in measurement():
                print(json.dumps(line), flush=True)
                render.update([line], folder)
        except Exception as error:
            failed += 1
            traceback.print_exc()
            print(json.dumps({"name": name, "error": f"{type(error).__name__}: {error}"}), flush=True)
    return failed


def main() -> None:
    """Parse the options and run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--size", type=parse_size, help="HEIGHTxWIDTH; default: the experiments' size")
    parser.add_argument("--images", type=int, help=f"images in pool, split and epoch; default: {IMAGES}")
    parser.add_argument("--rounds", type=int, default=3, help="rounds after warming up")
    parser.add_argument("--threads", type=int, default=1, help="threads per process")
    parser.add_argument("--data", type=Path, help="folder with camvid/; default: generated images")
    parser.add_argument("--only", default="", help="regular expression that selects measurements by name")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for results/ and RESULTS.md")
    options = parser.parse_args()
    try:
        device = choose_device(options.device)
    except SpecError as error:
        parser.error(str(error))
    prepare_process(options.threads)
    images = options.images or IMAGES[device.type]
    bench = Bench(device, options.size, images, options.rounds, options.threads, options.data)
    sys.exit(1 if run(bench, options.only, options.out) else 0)


if __name__ == "__main__":
    main()
