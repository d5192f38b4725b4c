"""Unobserved types: the EM steps and what is said of a mixture."""
