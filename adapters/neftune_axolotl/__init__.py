"""NEFTune for Axolotl.

Axolotl 0.21 and newer finds `NEFTunePlugin` by its entry point; older releases by
`plugins: [neftune_axolotl.NEFTunePlugin]` in the YAML.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neftune_axolotl.plugin import NEFTuneArgs, NEFTunePlugin

__all__ = ["NEFTuneArgs", "NEFTunePlugin"]


def __getattr__(name: str) -> Any:
    # Not at import: the `neftune` command lists this adapter where Axolotl is not installed.
    if name in __all__:
        from neftune_axolotl import plugin

        return getattr(plugin, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
