"""`python -m tests.plans SECONDS [SEED]`: see `tests.plans.run`."""

import sys
import time

from tests.plans.run import main

if __name__ == "__main__":  # worker processes cannot import what is defined here
    given = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() // 10**6
    sys.exit(main(float(sys.argv[1]), given))
