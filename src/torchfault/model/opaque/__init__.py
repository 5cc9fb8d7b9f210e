"""Models whose modules keep their words to themselves, captured by tracing."""
