"""Implements `neftune sweep`: many training runs with different noise and seeds. This ring knows studies, trials and
their comparison; it must not know how noise gets into a model."""
