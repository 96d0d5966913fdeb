"""`iqa-ray rescore` for `ray job submit --working-dir . -- python jobs/rescore.py …`."""

import sys

from iqa_ray.cli import main

sys.exit(main(["rescore", *sys.argv[1:]]))
