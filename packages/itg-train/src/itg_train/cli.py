"""`itg-train [RECIPE] [options]`: trains a frame grounder and shows what it learnt."""

import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import tyro
from itg_data.errors import ItgError, in_one_line
from itg_data.helptext import join_help, says_version

from itg_train.config import TrainConfig
from itg_train.launch import end_with_parent, is_first, lost_another, start_workers
from itg_train.recipes import RECIPES


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for bad input, 130 when interrupted."""
    asked = list(sys.argv[1:] if argv is None else argv)
    if says_version(asked, "itg-train", "itg-train"):
        return 0
    arguments, num_processes = take_nproc(asked)
    recipe, config = parse(arguments)
    if num_processes > 1:
        return start_workers(arguments, num_processes)
    end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    # everything is said once, by the first process; what goes wrong, by the one that it befalls
    if not is_first(os.environ):
        logging.getLogger().setLevel(logging.ERROR)
        for of_its_own_videos in ("itg_train.dataset", "itg_train.evaluate"):
            logging.getLogger(of_its_own_videos).setLevel(logging.WARNING)
    for talkative in ("httpx", "filelock", "DeepSpeed", "matplotlib"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    # torch, transformers and deepspeed take seconds to import: not for --help
    from itg_train.run import run

    try:
        text = run(recipe, config)
    except (ItgError, OSError) as error:
        print(f"itg-train: {in_one_line(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not lost_another(error):
            raise
        print(
            f"itg-train: process {os.environ['RANK']} ends because another one has, which says why",
            file=sys.stderr,
        )
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


def take_nproc(argv: Sequence[str]) -> tuple[list[str], int]:
    """Takes `--nproc N` out of the arguments, and what the deepspeed launcher adds to them."""
    arguments: list[str] = []
    num_processes = 1
    words = iter(argv)
    for word in words:
        name, _, value = word.partition("=")
        if name == "--local_rank":
            continue
        if name != "--nproc":
            arguments.append(word)
            continue
        value = value or next(words, "")
        if not value.isdigit() or int(value) < 1:
            _refuse(f"--nproc must be a number of processes, got {value!r}")
        num_processes = int(value)
    return arguments, num_processes


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
            join_help(TrainConfig),
            default=RECIPES[recipe](),
            args=arguments,
            prog=f"itg-train {recipe}",
            description=(
                "Trains a frame grounder and shows what it learnt. Usage: itg-train [RECIPE] "
                f"[options]; without a recipe, {names[0]}. Recipes:\n{summaries}\n\n"
                "The options below change the recipe. --nproc N runs N processes on this machine; "
                "processes that torchrun, deepspeed or srun started find one another. --version "
                "says which release this is."
            ),
        )
    except ValueError as error:
        _refuse(str(error))
    return recipe, config


def _refuse(reason: str) -> NoReturn:
    print(f"itg-train: {reason}", file=sys.stderr)
    raise SystemExit(2)
