"""The node plane: agent, zygote, worker, engine, handlers, checkpoints."""
