"""NEFTune for TRL's own commands, active as soon as they run (docs/autoload.md). In Python, pass the callback of
`neftune_transformers` to TRL's trainers."""
