"""The recipe of the bundled model: synthetic speech, augmentation, losses, training, scoring, export."""
