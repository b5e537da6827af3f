"""Dropping visual tokens between two layers of the language model."""
