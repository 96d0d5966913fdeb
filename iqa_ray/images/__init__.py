"""What an image is: where it lies, its bytes and its pixels."""
