"""What a classifier says of the scored images, the user's own or one trained here."""
