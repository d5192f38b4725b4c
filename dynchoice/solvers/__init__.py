"""Fixed points and their derivatives."""
