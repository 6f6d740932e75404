"""Sharing a generator over the Hugging Face Hub."""
