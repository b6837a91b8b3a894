"""Layouts in which others keep episodes: LeRobot's and Minari's, read into records and written from them."""
