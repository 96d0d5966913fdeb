"""`iqa-ray cutoffs` for `ray job submit --working-dir . -- python jobs/cutoffs.py …`."""

import sys

from iqa_ray.cli import main

sys.exit(main(["cutoffs", *sys.argv[1:]]))
