"""The driver of tests: a host in memory, whose calls can be cut off at any instant."""
