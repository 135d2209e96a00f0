"""The `neftune` command: check, doctor, demo and what they share. This ring knows frameworks as plugins describe them;
it must not import a framework itself, or torch before a command needs it."""
