"""The client verbs of the `stoker` command."""
