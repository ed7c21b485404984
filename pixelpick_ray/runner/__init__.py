"""Where and when chains run. Ray reads these settings once, when it is imported; what the user has set stays."""

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")  # nobody restores from what Tune saves
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")  # it takes SIGTERM, which asks a run to stop
os.environ.setdefault("RAY_worker_niceness", "0")  # at 15, Ray's own, chains starve beside other work
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "16")  # else one process starts after another
