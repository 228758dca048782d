"""The HTTP plane: control routes, invocations, OpenAI surface, command line."""
