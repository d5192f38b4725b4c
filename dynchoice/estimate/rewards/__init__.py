"""Rewards without a functional form, on rows and on levels."""
