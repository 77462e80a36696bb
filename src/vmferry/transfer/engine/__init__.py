"""The loops of a transfer: copy, compare, hash, in parallel streams."""
