"""Where and when chains run: Ray Tune, or this process."""
