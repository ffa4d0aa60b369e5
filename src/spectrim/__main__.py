"""`python -m spectrim`: what launchers of several processes, accelerate's and torchrun, start."""

from spectrim.cli.main import main

main()
