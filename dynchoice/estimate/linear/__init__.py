"""Linear regressions on log-odds, with instruments."""
