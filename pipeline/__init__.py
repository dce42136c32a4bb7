"""What runs where: stages as values, executors, the runner, loops, progress, the journal."""
