"""From annotation files and images to batches: one dataset file per task, and GRIT, which orders the examples."""
