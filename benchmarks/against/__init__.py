"""The two sides of each comparison with a reference implementation; one module per family."""
