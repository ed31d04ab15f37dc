"""`python -m sightline_playground make | check | export`."""

from __future__ import annotations

import sys

from sightline_playground.cli import main

sys.exit(main())
