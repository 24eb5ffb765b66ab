"""`python -m simulations`: see `simulations.run`."""

from simulations.run import main

if __name__ == "__main__":  # worker processes import this module too
    main()
