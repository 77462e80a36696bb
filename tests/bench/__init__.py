"""vmferry against the tools that a user would take instead: `make bench`."""
