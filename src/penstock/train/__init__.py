"""The training recipe: configuration, data, model and loop. Importing this package imports nothing."""
