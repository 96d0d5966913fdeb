"""Does selection help? Arms of training images, compared over several seeds."""
