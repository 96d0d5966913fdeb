"""`iqa-ray demo` for `ray job submit --working-dir . -- python jobs/demo.py …`."""

import sys

from iqa_ray.cli import main

sys.exit(main(["demo", *sys.argv[1:]]))
