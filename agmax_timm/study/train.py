"""train.py as a module, for the processes of a study."""
from ..commands.train import main

if __name__ == '__main__':
    main()
