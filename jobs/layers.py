"""`iqa-ray layers` for `ray job submit --working-dir . -- python jobs/layers.py …`."""

import sys

from iqa_ray.cli import main

sys.exit(main(["layers", *sys.argv[1:]]))
