"""Fuzzing of everything that a peer, a relay or a disk can feed; docs/testing.md says how."""
