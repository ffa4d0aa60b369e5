"""`python -m spectrim`: what launchers of several processes, accelerate's and torchrun, start."""

from spectrim.cli import main

main()
