"""Implements the commands `neftune check`, `neftune doctor` and `neftune demo`. This ring knows frameworks as plugins
describe them; it must not import a framework itself, or torch before a command needs it."""
