"""What the trainings share: optimiser, schedule, course, checkpoints."""
