"""Entry point of ``python -m pixelpick_ray`` and of the ``pixelpick-ray`` script."""

import sys

from pixelpick_ray.supervisor import WRONG, settle, supervise, why_unsupported


def main() -> None:
    """Run the command line in a supervised process; the exit status is always 0 to 3."""
    if why := why_unsupported(sys.version_info[:2], sys.platform):
        print(f"error: {why}", file=sys.stderr)
        sys.exit(WRONG)
    supervise()
    status: object = 1
    try:
        from pixelpick_ray.cli import main as command_line

        command_line()
        status = 0
    except SystemExit as ended:
        status = ended.code
        raise
    finally:
        settle(status if isinstance(status, int) and 0 <= status <= 3 else int(status is not None))


if __name__ == "__main__":
    main()
