"""`itg-train [RECIPE] [options]`: trains a frame grounder and shows what it learnt."""

import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

import tyro
from itg_data.errors import ItgError

from itg_train.config import TrainConfig
from itg_train.recipes import RECIPES


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for bad input, 130 when interrupted."""
    recipe, config = parse(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for talkative in ("httpx", "filelock", "DeepSpeed", "matplotlib"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    # torch, transformers and deepspeed take seconds to import: not for --help
    from itg_train.run import run

    try:
        text = run(recipe, config)
    except (ItgError, OSError) as error:
        print(f"itg-train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "itg-train: interrupted; the same command goes on from its last saved state, if any",
            file=sys.stderr,
        )
        return 130
    if text:
        print(text)
    return 0


def parse(argv: Sequence[str]) -> tuple[str, TrainConfig]:
    """Reads a recipe's name, the first recipe if none is given, and changes to its config."""
    names = list(RECIPES)
    arguments = list(argv)
    if arguments and not arguments[0].startswith("-"):
        recipe = arguments.pop(0)
        if recipe not in RECIPES:
            _refuse(f"there is no recipe {recipe!r}; recipes: {', '.join(names)}")
    else:
        recipe = names[0]
    summaries = "\n".join(
        f"  {name}: {(make.__doc__ or '').splitlines()[0]}" for name, make in RECIPES.items()
    )
    try:
        config = tyro.cli(
            TrainConfig,
            default=RECIPES[recipe](),
            args=arguments,
            prog=f"itg-train {recipe}",
            description=(
                "Trains a frame grounder and shows what it learnt. Usage: itg-train [RECIPE] "
                f"[options]; without a recipe, {names[0]}. Recipes:\n{summaries}\n"
                "The options below change the recipe. Several processes: "
                "torchrun --nproc-per-node 2 -m itg_train [RECIPE] [options]"
            ),
        )
    except ValueError as error:
        _refuse(str(error))
    return recipe, config


def _refuse(reason: str) -> NoReturn:
    print(f"itg-train: {reason}", file=sys.stderr)
    raise SystemExit(2)
