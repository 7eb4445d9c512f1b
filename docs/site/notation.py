"""From the equations of docstrings and pages, as plain text, to TeX.

Docstrings write equations so that they can be read in an editor, `x_t = alpha x_0 + sigma z`, and
the site shows them as mathematics. What reads like an equation but has a word that no equation has,
`f(x, t) = network(x)`, is code, and stays it: `tex` is None.
"""

from __future__ import annotations

import itertools
import re

GREEK = {
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "kappa", "lambda"),
    *("mu", "nu", "xi", "pi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega"),
    *("Gamma", "Delta", "Theta", "Lambda", "Sigma", "Phi", "Psi", "Omega"),
}
FUNCTIONS = {"log", "exp", "sin", "cos", "tan", "sinh", "cosh", "tanh", "min", "max"}
SYMBOLS = {"eps": r"\varepsilon", "abar": r"\bar{\alpha}", "grad": r"\nabla", "sum": r"\sum"}
# Words that stand for a quantity, or for an operator without a symbol.
WORDS = {
    *("div", "tr", "score", "noise", "text", "image", "mean", "std", "variance", "scale", "weight"),
    *("bandwidth", "area", "values", "bits", "log_snr", "prior_std", "input_std", "noise_mse"),
    *("taps", "down", "len", "dim", "KL", "noise_std", "log_scale", "energy", "softmax"),
}
SUBSCRIPTS = {"min", "max", "data", "last", "next", "first", "mean", "std", "hat", "cond", "null"}
SUBSCRIPTS |= {"eff", "prior", "lr", "hr", "start", "mid", "end", "steps", "text", "image", "one"}
OPERATORS = {
    "<=": r"\le",
    ">=": r"\ge",
    "<-": r"\leftarrow",
    "->": r"\to",
    "...": r"\dots",
    "~": r"\sim",
    **{operator: operator for operator in "=+-/<>,;'"},
}
RELATIONS = {"=", "<=", ">=", "<", ">", "~", "<-", "+", "-", "/", "^"}
CLOSING = {"(": ")", "[": "]", "{": "}"}
Token = tuple[str, str, bool]  # kind, text, and whether a space stands before it
TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?(?![\w.]))"
    r"|(?P<name>[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*_?)"
    r"|(?P<operator><=|>=|<-(?=\s)|->|\.\.\.|[-=+/<>~,;'^|()\[\]{}]))"
)
CODE = re.compile(r"[-+]{2}|\w=[\w(-]|==|[A-Za-z_]\.\w|\w\.[A-Za-z_]|\be-\d")


class Code(Exception):
    """What was read is no equation."""


def tex(text: str) -> str | None:
    """TeX of an equation, or None where `text` is code rather than an equation.

    An equation has a letter and an operator, or it is a function of something: `sigma(t)`.
    """
    body = text.strip().replace(r"\|", "|")
    stop = body[-1:] if body[-1:] in (".", ",") and not body.endswith("...") else ""
    if stop:
        body = body[:-1]
    if CODE.search(body):
        return None
    try:
        tokens = _tokens(body)
        if not _is_equation(tokens):
            return None
        return _sequence(tokens, None) + stop
    except Code:
        return None


def _tokens(text: str) -> list[Token]:
    """Kind and text of each token, and whether a space stands before it."""
    tokens, position = [], 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None or not match.lastgroup:
            raise Code(text)
        kind = match.lastgroup
        tokens.append((kind, match[kind], match.start(kind) > position))
        position = match.end()
    return tokens


def _is_equation(tokens: list[Token]) -> bool:
    """Whether there is a letter, and beside it an operator or a function's argument."""
    names = [text for kind, text, _ in tokens if kind == "name"]
    relation = any(text in RELATIONS for kind, text, _ in tokens if kind == "operator")
    applied = "integral" in names or any(
        kind == "name" and not spaced and bracket in ("(", "[" if text == "E" else "(")
        for (kind, text, _), (_, bracket, spaced) in itertools.pairwise(tokens)
    )
    return bool(names) and len(tokens) > 1 and (relation or applied)


def _sequence(tokens: list[Token], closing: str | None) -> str:
    """TeX of tokens up to the bracket or bar `closing`, which is taken off the list as well."""
    parts: list[str] = []
    while tokens:
        kind, text, spaced = tokens.pop(0)
        if text == closing:
            return _joined(parts)
        if kind == "number":
            parts.append(text)
        elif kind == "name":
            parts.append(_name(text, tokens))
        elif text in CLOSING:
            inside = _sequence(tokens, CLOSING[text])
            left, right = (r"\{", r"\}") if text == "{" else (text, CLOSING[text])
            parts.append(f"{left} {inside} {right}")
        elif text == "^":
            if not parts:
                raise Code(text)
            # The exponent of a bracket stands as high as that of a letter.
            empty = "{}" if parts[-1].endswith((")", "]", r"\}", r"\rvert")) else ""
            parts[-1] += f"{empty}^{{{_exponent(tokens)}}}"
        elif text == "|":
            parts.append(_bar(parts, tokens, spaced))
        elif text == "<" and _opens(parts, tokens, spaced):
            parts.append(rf"\langle {_sequence(tokens, '>')} \rangle")
        elif text == "'":
            if not parts:
                raise Code(text)
            parts[-1] += "'"
        elif text in OPERATORS:
            parts.append(OPERATORS[text])
        else:
            raise Code(text)
    if closing is not None:
        raise Code(closing)
    return _joined(parts)


def _joined(parts: list[str]) -> str:
    """The parts, with a thin space before `dt` and its like where they follow an operand."""
    line = ""
    for part in parts:
        differential = re.match(r"\\mathrm{d}.", part) and line
        if differential and not line.endswith((*OPERATORS.values(), r"\mid", r"\Vert")):
            line += r" \,"
        line += f" {part}" if line else part
    return line


def _opens(parts: list[str], tokens: list[Token], spaced: bool) -> bool:
    """Whether `<` begins an expectation or a product, `<x, y>`, rather than compares."""
    return not parts or (spaced and bool(tokens) and not tokens[0][2])


def _bar(parts: list[str], tokens: list[Token], spaced: bool) -> str:
    """A norm `|s|`, or the bar of a condition `p(x | y)`, which has spaces on both sides."""
    if tokens and tokens[0][1] == "|" and not tokens[0][2]:
        tokens.pop(0)
        return r"\Vert"
    if parts and spaced and tokens and tokens[0][2]:
        return r"\mid"
    return rf"\lvert {_sequence(tokens, '|')} \rvert"


def _exponent(tokens: list[Token]) -> str:
    """What is raised: a number, a name, or a group in brackets, with a sign before it perhaps."""
    if not tokens:
        raise Code("^")
    kind, text, _ = tokens.pop(0)
    if kind == "number":
        return text
    if kind == "name":
        return _name(text, [])
    if text in ("-", "+"):
        return text + _exponent(tokens)
    if text in ("(", "{"):
        return _sequence(tokens, CLOSING[text])
    raise Code(text)


def _name(name: str, tokens: list[Token]) -> str:
    """TeX of a name; `sqrt`, `integral` and a subscript in braces take what follows."""
    applied = bool(tokens) and tokens[0][1] == "(" and not tokens[0][2]
    if name == "sqrt" and applied:
        tokens.pop(0)
        return rf"\sqrt{{{_sequence(tokens, ')')}}}"
    if name == "integral":
        return _integral(tokens)
    if name == "d" and not applied and tokens and tokens[0][0] == "name":
        return r"\mathrm{d}"
    if name == "N" and applied:
        return r"\mathcal{N}"
    if name.endswith("_") and tokens and tokens[0][1] in ("{", "("):
        closing = CLOSING[tokens.pop(0)[1]]
        return f"{_base(name[:-1])}_{{{_sequence(tokens, closing)}}}"
    if not applied and tokens and tokens[0][1] == "[" and not tokens[0][2] and name != "E":
        raise Code(name)
    if name == "E" and tokens and tokens[0][1] in ("(", "[", "|"):
        return r"\mathbb{E}"
    return _base(name)


def _integral(tokens: list[Token]) -> str:
    """`integral from a to b of`, with one name or number for each bound."""
    words = [text for _, text, _ in tokens[:5]]
    if len(words) < 5 or words[0::2] != ["from", "to", "of"]:
        raise Code("integral")
    bounds = [text if kind == "number" else _base(text) for kind, text, _ in tokens[1:4:2]]
    del tokens[:5]
    return rf"\int_{{{bounds[0]}}}^{{{bounds[1]}}}"


def _base(name: str) -> str:
    """TeX of a name without what follows: `sigma_min`, `x_0`, `dlambda`, `score`."""
    if name in WORDS:
        return rf"\operatorname{{{name}}}".replace("_", r"\_")
    if name in FUNCTIONS:
        return f"\\{name}"
    if name in SYMBOLS:
        return SYMBOLS[name]
    if name in GREEK:
        return f"\\{name}"
    if len(name) == 1:
        return name
    base, _, subscript = name.partition("_")
    if subscript:
        if subscript == "hat":
            return rf"\hat{{{_base(base)}}}"
        if len(base) > 1 and base not in GREEK | set(SYMBOLS) | WORDS:
            raise Code(name)
        return f"{_base(base)}_{{{_subscript(subscript)}}}"
    if re.fullmatch(r"[A-Za-z]\d", name):
        return f"{name[0]}_{{{name[1]}}}"
    if name[0] == "d" and (len(name) == 2 or name[1:] in GREEK):
        return rf"\mathrm{{d}}{_base(name[1:])}"
    raise Code(name)


def _subscript(name: str) -> str:
    if name.isdigit():
        return name
    if name in SUBSCRIPTS:
        return rf"\mathrm{{{name}}}"
    if re.fullmatch(r"[ijklmn]{2}", name):
        return name
    return _base(name)
