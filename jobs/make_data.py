"""`iqa-ray make-data` for `ray job submit --working-dir . -- python jobs/make_data.py …`."""

import sys

from iqa_ray.cli import main

sys.exit(main(["make-data", *sys.argv[1:]]))
