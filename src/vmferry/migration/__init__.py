"""Migrations as lists of steps. Read here first: strategies, one step, saga."""
