"""What is known of transformers beyond its documented interface: names that move, containers, wrappers."""
