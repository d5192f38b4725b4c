"""Rows of people become counts."""
