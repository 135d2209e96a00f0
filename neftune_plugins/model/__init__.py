"""Puts noise into a model: finds its embeddings, adds the forward hooks, and measures the noise. This ring knows
PyTorch modules; it must not know any training framework or the command line."""

from neftune_plugins.model.install import Handle, install
from neftune_plugins.model.report import VARIABLE as REPORT_VARIABLE
from neftune_plugins.model.sharded import refuse_context_parallel

__all__ = ["REPORT_VARIABLE", "Handle", "install", "refuse_context_parallel"]
