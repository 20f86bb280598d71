"""`python -m qcrd` equals `qcrd`."""

from qcrd.cli import main

if __name__ == "__main__":
    main()
