"""Runs the method on video: media, pipeline, command line."""
