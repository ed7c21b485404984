"""Start here: ``python launch.py run experiments/quickstart.yaml``."""

from pixelpick_ray.cli import main

if __name__ == "__main__":
    main()
