"""What `attach` puts between a caller and a model: pruned prompts, their caches, and the turns that follow."""
