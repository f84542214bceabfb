"""The input and output of each task, as handlers see it."""
