"""`iqa-ray study` for `ray job submit --working-dir . -- python jobs/study.py …`."""

import sys

from iqa_ray.cli import main

sys.exit(main(["study", *sys.argv[1:]]))
