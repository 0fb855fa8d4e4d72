"""What people look at: pages and pictures made of a run's results."""
