"""Values with a unit: intervals in updates or seconds, amounts of memory."""
import argparse


def interval(value: int | str) -> int | str:
    """Convert an interval: a number of updates to an int; seconds, such as '600s', stay text."""
    number, unit = parse_interval(value)
    return int(number) if unit == 'updates' else str(value)


def parse_interval(value: int | str) -> tuple[int | float, str]:
    """Return the number and the unit, 'updates' or 'seconds', of an interval. Raise ValueError if it is invalid."""
    text = str(value)
    number, unit = (float(text[:-1]), 'seconds') if text.endswith('s') else (int(value), 'updates')
    if not 0 <= number < float('inf') or (unit == 'seconds' and not number):
        raise ValueError
    return number, unit


def memory(value: float | str) -> str:
    """Check an amount of memory: a share of the free memory in [0, 1], or an amount such as '8G' or '500M'."""
    text = str(value)
    amount = text[-1:].upper() in ('G', 'M')
    if not 0. <= float(text[:-1] if amount else text) <= (float('inf') if amount else 1.):
        raise argparse.ArgumentTypeError(f"takes a share in [0, 1], or an amount such as 8G or 500M, got '{value}'")
    return text


def share_of(split: str | None) -> float | None:
    """Return the share of the training images that a split stands for, above 0 and below 1; None for a name."""
    try:
        share = float(split or '')
    except ValueError:
        return None
    return share if 0. < share < 1. else None


def split(value: float | str) -> str:
    """Return the name of a split as text. A share is written in one way: '.10' and the number 0.1 are '0.1'."""
    if str(value).lower().lstrip('+-') in ('nan', 'inf', 'infinity'):
        raise argparse.ArgumentTypeError(f"takes the name of a split, or a share above 0 and below 1, got '{value}'")
    return str(share_of(str(value)) or value)
