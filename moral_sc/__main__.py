"""Run the command line: `python -m moral_sc`."""

# This file is written by hand.
from moral_sc.lab.cli.app import main

if __name__=='__main__': main()
