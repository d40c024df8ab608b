"""What a text must be, as options say it: checked as far as that needs no model, before one is loaded."""

from argparse import Namespace
from dataclasses import replace

from ..constraint import Constraint
from ..errors import UsageError
from ..params import SamplingParams
from .prompt import read_text


def formed(params: SamplingParams, args: Namespace) -> SamplingParams:
    """`params` with the form that this command line asks for. UsageError where it asks for two, or for one that cannot be."""
    given = [name for name in ("schema", "regex", "grammar") if getattr(args, name) is not None]
    if len(given) > 1:
        raise UsageError(f"--{given[0]} and --{given[1]} cannot be given together: a text has one form.")
    if not given:
        return params
    constraint = _constraint(given[0], args)
    # llguidance is imported for those who ask for a form alone.
    from ..grammar_compiler import check_alone

    check_alone(constraint)
    return replace(params, constraint=constraint)


def _constraint(name: str, args: Namespace) -> Constraint:
    option = f"--{name}"
    if name == "regex":
        return Constraint.regex(args.regex, option)
    file = getattr(args, name)
    text = read_text(file, f"the {name}")
    return (Constraint.json_schema if name == "schema" else Constraint.grammar)(text, option)
