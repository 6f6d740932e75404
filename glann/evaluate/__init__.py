"""Measuring a trained generator against images it has never seen."""
