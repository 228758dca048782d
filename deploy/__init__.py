"""The local supervisor and the entry point that wires the command line."""
