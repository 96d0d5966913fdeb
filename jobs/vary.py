"""`iqa-ray vary` for `ray job submit --working-dir . -- python jobs/vary.py …`."""

import sys

from iqa_ray.cli import main

sys.exit(main(["vary", *sys.argv[1:]]))
