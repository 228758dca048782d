"""Function handlers: the default model handler and user code."""
