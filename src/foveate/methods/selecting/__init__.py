"""Methods that keep some tokens as they are: one paper per file."""
