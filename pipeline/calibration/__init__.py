"""How honest a classifier's confidence is, and what makes it more so.

- `measures`: calibration errors, likelihood and Brier score, with bootstrap intervals.
- `methods`: temperature, vector scaling, isotonic regression.
- `reliability`, `picture`: the reliability diagram as data and as a picture.
- `record`: what the calibrate stage and its stand-in write about all this.
"""
