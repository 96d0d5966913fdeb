"""What is wrong with an image: the type and the severity of its distortion (Elaraby et al.)."""
