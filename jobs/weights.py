"""`iqa-ray weights` for `ray job submit --working-dir . -- python jobs/weights.py …`."""

import sys

from iqa_ray.cli import main

sys.exit(main(["weights", *sys.argv[1:]]))
