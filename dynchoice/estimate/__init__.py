"""Estimators, one a module."""
