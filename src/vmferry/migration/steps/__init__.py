"""The steps: each does one thing, can undo it, and can tell after a crash whether it was done."""
