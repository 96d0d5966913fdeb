"""`iqa-ray compact` for `ray job submit --working-dir . -- python jobs/compact.py …`."""

import sys

from iqa_ray.cli import main

sys.exit(main(["compact", *sys.argv[1:]]))
