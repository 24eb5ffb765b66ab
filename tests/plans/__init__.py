"""The planner and the tree on their own, at full speed; docs/testing.md says how."""
