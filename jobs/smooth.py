"""`iqa-ray smooth` for `ray job submit --working-dir . -- python jobs/smooth.py …`."""

import sys

from iqa_ray.cli import main

sys.exit(main(["smooth", *sys.argv[1:]]))
