"""Helpers for tests that run the real program: namespaces, processes, trees, packets."""
