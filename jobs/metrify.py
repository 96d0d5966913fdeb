"""`iqa-ray metrify` for `ray job submit --working-dir . -- python jobs/metrify.py …`."""

import sys

from iqa_ray.cli import main

sys.exit(main(["metrify", *sys.argv[1:]]))
