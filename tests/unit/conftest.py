"""Hypothesis for the pure modules: the same examples every time, no clock."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("unit", deadline=None, derandomize=True, max_examples=100)
settings.register_profile("long", deadline=None, max_examples=3000)
settings.load_profile(os.environ.get("BATON_HYPOTHESIS", "unit"))
