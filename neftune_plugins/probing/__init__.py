"""`neftune probe`: runs a training command and measures the noise that enters its models, from outside.

`injected`, `agent`, `recording` and `callers` run inside of the command, the others in `neftune` itself.
"""
