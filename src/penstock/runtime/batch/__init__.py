"""From a user's batch to microbatches, and from their outputs back."""
