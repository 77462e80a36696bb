"""Pages of the command line: what the API answered, for people."""
