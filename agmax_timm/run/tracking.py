"""Weights & Biases: the rows of summary.csv, where --log-wandb asks for it."""
import argparse
from typing import Any

from .config import OptionError


def require_wandb(args: argparse.Namespace) -> None:
    """Raise OptionError, before anything is built, where --log-wandb cannot work."""
    if not args.log_wandb:
        return
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise OptionError('--log-wandb needs the package wandb: pip install wandb, or drop it') from error


def start_wandb(args: argparse.Namespace, name: str) -> Any:
    """The run there, with `log(row)` and `finish()`; None without --log-wandb."""
    if not args.log_wandb:
        return None
    import wandb
    return wandb.init(
        project=args.wandb_project,
        name=name,
        config=vars(args),
        tags=args.wandb_tags,
        id=args.wandb_resume_id or None,
        resume='must' if args.wandb_resume_id else None,
    )
