"""`iqa-ray compare` for `ray job submit --working-dir . -- python jobs/compare.py …`."""

import sys

from iqa_ray.cli import main

sys.exit(main(["compare", *sys.argv[1:]]))
