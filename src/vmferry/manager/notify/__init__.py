"""Who is told of what became of jobs and transfers."""
