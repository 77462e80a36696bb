"""Hosts: what one can do for a job, and the drivers that do it."""
