"""`python -m neftune_plugins` is the `neftune` command."""

from neftune_plugins.cli import main

main()
