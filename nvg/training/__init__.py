"""Training: losses, tasks, the loop, checkpoints, and the Ray edge."""
