"""Economic primitives; nothing here is estimated."""
