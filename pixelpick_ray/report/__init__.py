"""Reports: tables and curves from the store alone. Imports neither torch nor ray and needs no data set."""
