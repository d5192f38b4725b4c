"""Callouts for members: Bayesian probit models of clicks, and policies that learn what to show.

Uses the base and ``panel`` only. What a discovery is worth in the long run, and what a policy does
to take-up, is computed above the estimators: :mod:`dynchoice.counterfactuals.discovery`.
"""
