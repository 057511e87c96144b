"""The frozen encoders: one family per file, found by name through `registry`."""
