"""`python -m simulations.hunt`: see `simulations.mutants`."""

from simulations.mutants import main

if __name__ == "__main__":  # worker processes cannot import what is defined here
    main()
