"""What a manager's process and an agent's both need: state folder, lock, log, version."""
