"""Encoders that others published: their files become encoder artifacts, which every job takes like Pathray's own."""
