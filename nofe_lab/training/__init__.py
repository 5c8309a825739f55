"""Training: one loop for every network, the tasks it teaches, and the events it reports."""
