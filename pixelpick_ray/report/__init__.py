"""From the store to tables and curves. Imports neither torch nor ray, and needs no data set."""
