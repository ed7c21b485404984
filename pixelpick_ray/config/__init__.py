"""What to run: experiment files, trials and keys. Imports neither torch nor Ray."""
