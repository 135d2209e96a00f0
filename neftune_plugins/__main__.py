"""`python -m neftune_plugins` is the `neftune` command."""

from neftune_plugins.commands.cli import main

main()
