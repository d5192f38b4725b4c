"""The scheduled run."""
