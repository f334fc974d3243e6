"""`python -m peerformer` and `torchrun -m peerformer`: the same as the `peerformer` command."""

import sys

from peerformer.interface.cli import main

if __name__ == "__main__":
    sys.exit(main())
