"""The driver for a host on another machine, through its agent."""
