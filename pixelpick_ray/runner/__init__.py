"""Running chains: where and when. Ray reads the settings below on import; those set by the user are kept."""

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")  # we never restore from Tune's own checkpoints
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")  # it would take over SIGTERM, which stops a run
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default of 15 starves chains on busy machines
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "16")  # otherwise processes start one by one
