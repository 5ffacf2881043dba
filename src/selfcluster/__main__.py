"""`python -m selfcluster`, and under `torchrun -m selfcluster`."""

import sys

from selfcluster.cli import main

sys.exit(main())
