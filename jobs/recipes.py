"""rayssl recipes [NAME]: list the recipes, or show one with its whole config."""

import json
import sys

import click

from rayssl.jobs.cli import parse
from rayssl.jobs.main import run_verb


def main(argv: list[str]) -> int:
    """Names with the first line of their docstrings; for one, its docstring and config."""
    argument = click.Argument(["name"], required=False, metavar="[NAME]")
    parsed = parse(
        "recipes", "List the recipes, or show one with its whole config.", argv, [argument], flags=(), only=()
    )
    from rayssl.pipeline.recipes import RECIPES, build_recipe, describe_recipe

    name = parsed.values["name"]
    if name:
        from rayssl.pipeline.config import to_dict

        config = to_dict(build_recipe(name))
        print(f"{name}: {describe_recipe(name)}\n", file=sys.stderr)
        if config["plan"]:
            print(f"planned when it starts, unless given: {', '.join(config['plan'])}\n", file=sys.stderr)
        if config.get("on_gpu"):
            told = ", ".join(f"{path} {value}" for path, value in config["on_gpu"].items())
            print(f"for training on a CPU; on a GPU: {told}\n", file=sys.stderr)
        print(json.dumps(config, indent=None if parsed.values["json"] else 2))
    elif parsed.values["json"]:
        print(json.dumps({recipe: describe_recipe(recipe) for recipe in RECIPES}))
    else:
        for recipe in RECIPES:
            print(f"{recipe:<20} {describe_recipe(recipe).splitlines()[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("recipes", sys.argv[1:]))
