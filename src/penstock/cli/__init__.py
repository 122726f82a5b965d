"""The command `penstock`: one file a command, its options a typed dataclass, and a function that runs it."""
