"""Side-by-side measurements: what this package costs beside `socket`, in the same process and the same second.

Run with `python -m bench` in the checkout; README.md says what the figures mean.
"""
