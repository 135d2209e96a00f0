"""NEFTune for TRL's own commands, found by itself when they run (docs/autoload.md). In Python, TRL's trainers take the
callback of `neftune_transformers`."""
