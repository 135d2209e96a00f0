"""`neftune sweep`: many trainings that differ in their noise and their seed."""
