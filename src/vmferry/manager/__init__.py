"""What only a manager runs: jobs, transfers, limits, the fleet, notifications, and their records."""
