"""`python -m hf_mote.organisms.build NAME [--output DIR] [--seed N]`: see `hf_mote.organisms.building.build`."""

from hf_mote.organisms.building.build import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
