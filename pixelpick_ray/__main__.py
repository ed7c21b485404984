"""``python -m pixelpick_ray``: the command line."""

from pixelpick_ray.cli import main

if __name__ == "__main__":
    main()
