"""The manager's process."""
