"""Should a network that names distortions see crops of images, or whole images that were resized?

    python -m benchmarks.crops_or_resizing --synthesise-from IMAGES --out FOLDER

Makes distorted images of the photographs, and the same ones resized to squares of the network's
size; trains a network on either, with the same split and settings, and prints the command lines and
what they printed. The second network's single crop is the whole image.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pandas as pd
from PIL import Image, ImageOps

from benchmarks.products import run
from iqa_ray.distortion_types.synthesis import find_made, plan_counts
from iqa_ray.images.source import ImageSource
from iqa_ray.progress import Progress
from iqa_ray.storage.files import locate

SIDE = 96


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--synthesise-from", required=True, metavar="IMAGES")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-images", type=int, default=4200)
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    counts = plan_counts(arguments.num_images, "balanced", False)
    folder = arguments.out / "made"
    sources = [ImageSource(locate(uri)) for uri in arguments.synthesise_from.split(",")]
    with Progress(arguments.num_images, "distort photographs") as progress:
        made = find_made(locate(folder), sources, counts, 0, progress.update, is_varied=True)
    manifest = Path(made.root.path)
    resized = resize(manifest, arguments.out / "resized")
    settings = f"--crop-size {SIDE} --epochs {arguments.epochs} --cpus-per-run 2"
    for name, images, num_crops in (("crops", manifest, 5), ("whole", resized, 1)):
        workspace = shlex.quote(str(arguments.out / name))
        run(
            f"iqa-ray distortions train {shlex.quote(str(images))} --workspace {workspace} "
            f"--num-crops {num_crops} {settings}"
        )


def resize(manifest: Path, folder: Path) -> Path:
    """Write each image as a square of SIDE pixels, and a manifest of them."""
    for path in pd.read_csv(manifest)["path"]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(manifest.parent / path) as image:
            square = ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BILINEAR)
        square.save(folder / path, compress_level=1)
    (folder / manifest.name).write_bytes(manifest.read_bytes())
    return folder / manifest.name


if __name__ == "__main__":
    main()
