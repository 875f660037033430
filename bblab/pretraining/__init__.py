"""Pretraining: recipes as data."""
