"""`iqa-ray distortions` for `ray job submit --working-dir . -- python jobs/distortions.py …`."""

import sys

from iqa_ray.cli import main

sys.exit(main(["distortions", *sys.argv[1:]]))
