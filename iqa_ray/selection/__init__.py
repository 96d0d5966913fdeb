"""From scores and predictions to the subset worth training on."""
