"""Jobs from submission to receipt: admission, journal, control, failover."""
