"""`iqa-ray score` for `ray job submit --working-dir . -- python jobs/score.py …`."""

import sys

from iqa_ray.cli import main

sys.exit(main(["score", *sys.argv[1:]]))
