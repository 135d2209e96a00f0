"""The switch that leaves the frameworks as they come."""

import os

VARIABLE = "NEFTUNE_PLUGINS"


def enabled() -> bool:
    """False where the environment says NEFTUNE_PLUGINS=0: then the frameworks' own NEFTune is left alone."""
    return os.environ.get(VARIABLE, "1") != "0"
