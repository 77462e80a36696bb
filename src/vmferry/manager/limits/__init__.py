"""What jobs may use at a time: slots, rates, and what guests leave."""
