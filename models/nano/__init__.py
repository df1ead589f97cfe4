"""The recipe that makes the packaged `nano`: data, training, evaluation, export. Not part of the wheel."""
