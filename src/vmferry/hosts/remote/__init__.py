"""The driver for a host elsewhere: its agent is asked."""
