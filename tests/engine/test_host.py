"""A process that trains keeps its memory."""

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.alone

PROGRAM = """
    import resource, sys
    import torch
    from pixelpick_ray.engine.host import prepare_process
    if sys.argv[1] == "prepared":
        prepare_process(1)
        assert torch.get_num_threads() == 1
    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    def blocks():
        for size in (3, 40, 7):
            torch.zeros(size * 2**18)
    blocks()
    counts = []
    for _ in range(10):
        before = faults()
        blocks()
        counts.append(faults() - before)
    print(min(counts))  # the system may take pages back meanwhile
"""


def page_faults(how: str) -> int:
    """Of three blocks of 50 MB together, asked for again after they were freed."""
    program = textwrap.dedent(PROGRAM)
    return int(subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_most_blocks_that_were_freed_are_taken_again_without_page_faults() -> None:
    assert page_faults("prepared") < 5000 < page_faults("as it is")
