"""``python -m diffsight``, which ``accelerate launch -m diffsight train`` needs."""

import sys

from diffsight.cli import main

if __name__ == "__main__":
    sys.exit(main())
