"""Command line of a checkout: ``python launch.py run experiments/quickstart.yaml``."""

import signal

if __name__ == "__main__":
    if hasattr(signal, "pthread_sigmask"):  # defer stop signals until they are handled
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    from pixelpick_ray.__main__ import main

    main()
