"""Studies: many runs, compared in one report."""
