"""Scenes, windows, classes and tiles: everything about places and pixels that needs no torch."""
