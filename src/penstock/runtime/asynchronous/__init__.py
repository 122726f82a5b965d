"""Programs that step inside: weight versions, delay rules, and batches that follow one another without a flush."""
