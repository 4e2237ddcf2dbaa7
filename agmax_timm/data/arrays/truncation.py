"""Truncation of results to integers, as in PIL. OpenCV rounds them to the nearest integer."""

# Added before OpenCV rounds. It is slightly more than -0.5, so that a whole number with an error of float32 arithmetic
# (at most 5e-5) is not changed. PIL may truncate such a number to 1 level less, depending on its last bits.
TRUNCATE = -.5 + 2. ** -13
