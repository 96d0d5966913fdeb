"""Label smoothing by image quality: sure labels for good images (Chen et al.)."""
