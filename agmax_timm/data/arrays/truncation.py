"""How OpenCV, which rounds a result to the nearest integer, is made to cut it off to an integer as PIL does."""

# Added before the rounding. A little more than minus a half, so that a whole number with the error of float32
# arithmetic (5e-5 at most) stays that number. PIL cuts such a number off by its own last bits: then it is 1 level less.
TRUNCATE = -.5 + 2. ** -13
