"""`iqa-ray predict` for `ray job submit --working-dir . -- python jobs/predict.py …`."""

import sys

from iqa_ray.cli import main

sys.exit(main(["predict", *sys.argv[1:]]))
