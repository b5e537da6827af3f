"""From a prompt's ids to the user's question, to its nouns, and to its likeness to an image's patches."""
