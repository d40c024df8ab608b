"""A command from outside the package: it counts the tokens of its words."""

from argparse import Namespace

from understudy.frontends.parser import Command, Parser


def _declare(parser: Parser) -> None:
    parser.add_argument("words", nargs="+")


def _run(args: Namespace) -> int:
    print(len(args.words))
    return 0


command = Command("count words", _declare, _run)
