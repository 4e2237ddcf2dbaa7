"""One run of a study, in a process of its own: train.py, wherever the package is."""
from ..commands.train import main

if __name__ == '__main__':
    main()
