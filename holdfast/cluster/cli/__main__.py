"""``python -m holdfast.cluster.cli`` is ``holdfast``."""

import sys

from holdfast.cluster.cli import main

sys.exit(main())
