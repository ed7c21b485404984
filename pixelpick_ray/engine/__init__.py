"""One fit or one pick, on a World of any size."""
