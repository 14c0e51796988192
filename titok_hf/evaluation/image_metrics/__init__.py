"""The metrics as a module of `evaluate`."""
