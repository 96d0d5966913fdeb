"""`iqa-ray select` for `ray job submit --working-dir . -- python jobs/select_subset.py …`."""

import sys

from iqa_ray.cli import main

sys.exit(main(["select", *sys.argv[1:]]))
