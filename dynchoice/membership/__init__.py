"""Membership programmes in their own words: plans, benefits, costs, and the model they imply."""
