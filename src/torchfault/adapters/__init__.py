"""From what users have to what the engine takes: models, checkpoints and data by name, other representations."""
