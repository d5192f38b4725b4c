"""All code that numba compiles: a file calls no kernel of another, since the cache misses edits."""
