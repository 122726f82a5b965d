"""Schedules and timelines made visible: terminal, tables, pictures, traces. Values in, drawings out."""
