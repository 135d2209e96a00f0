"""`neftune sweep`: many trainings that differ in their noise and their seed. This ring knows studies, trials and their
comparison; it must not know how noise gets into a model."""
