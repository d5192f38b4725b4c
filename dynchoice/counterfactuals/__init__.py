"""What if, and what next."""
