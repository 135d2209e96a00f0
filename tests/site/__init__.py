"""The documentation site as it was built."""
