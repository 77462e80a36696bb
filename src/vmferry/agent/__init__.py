"""What runs on each host of a fleet: takes a manager's calls, and serves what other hosts read."""
