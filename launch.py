"""Start here: ``python launch.py run experiments/quickstart.yaml``."""

import signal

if __name__ == "__main__":
    if hasattr(signal, "pthread_sigmask"):  # signals that ask to stop wait until somebody hears them
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    from pixelpick_ray.__main__ import main

    main()
