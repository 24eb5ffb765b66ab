"""For all tests."""

from hypothesis import settings

# A machine that does something else meanwhile is no reason to fail.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
