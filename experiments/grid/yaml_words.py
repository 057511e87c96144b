"""Words that YAML versions read differently: `010` is 8 in YAML 1.1, which PyYAML implements, and 10 in YAML 1.2.

Such words are rejected. Words that both versions read alike are accepted.
"""

import re

import yaml

from refavs.errors import ConfigError

TEXT, NUMBER, BOOLEAN, NOTHING = "text", "a number", "true or false", "null"
# YAML 1.2.2, 10.3.2: the core schema.
_CORE = (
    (NOTHING, re.compile(r"null|Null|NULL|~|")),
    (BOOLEAN, re.compile(r"true|True|TRUE|false|False|FALSE")),
    (NUMBER, re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")),
    (NUMBER, re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")),
)
_TAGS = {
    "tag:yaml.org,2002:null": NOTHING, "tag:yaml.org,2002:bool": BOOLEAN, "tag:yaml.org,2002:int": NUMBER,
    "tag:yaml.org,2002:float": NUMBER, "tag:yaml.org,2002:str": TEXT,
}  # fmt: skip
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")
_HOW = ((re.compile(r".*:"), "in base 60"), (re.compile(r"[-+]?0[0-7_]+"), "octal"), (re.compile(r"[-+]?0b"), "binary"))
MOST_SHOWN = 40  # characters; longer numbers are not computed, which could take long


def refuse_ambiguous(node: yaml.ScalarNode, loader: yaml.SafeLoader, place: str) -> None:
    """Checks that a word means the same in all versions of YAML.

    Raises:
        ConfigError: it does not, or is a number with a leading zero; the message says what it would have meant.
    """
    word = node.value
    if node.tag != loader.resolve(yaml.ScalarNode, word, (node.style is None, node.style is not None)):
        if _TAGS.get(node.tag, TEXT) != TEXT:
            raise ConfigError(f"{place}: the tag {node.tag} is not accepted; write a plain value")
        return
    if node.style is not None:  # in quotes
        return
    old = _TAGS.get(node.tag, "a date" if node.tag.endswith(":timestamp") else "a special word")
    new = next((kind for kind, pattern in _CORE if pattern.fullmatch(word)), TEXT)
    if old == new and not (new == NUMBER and _LEADING_ZERO.match(word)) and not (old == NUMBER and "0o" in word):
        return
    short = word if len(word) <= MOST_SHOWN else f"{word[:MOST_SHOWN]}..."
    before, after = _meaning_before(node, loader, old), _meaning_now(word, new)
    how = next((f" ({how})" for pattern, how in _HOW if pattern.match(word) and old == NUMBER and before != after), "")
    told = f"{before}{how} in YAML 1.1 and {after} in YAML 1.2" if before != after else before
    known = [meaning for meaning, kind in ((before, old), (after, new)) if meaning != kind]
    plain = f"write {' or '.join(dict.fromkeys(known))} if that is meant" if known else "write it out plainly"
    raise ConfigError(f"{place}: {short} would be {told}; {plain}, or put it in quotes if it is text")


def _meaning_before(node: yaml.ScalarNode, loader: yaml.SafeLoader, kind: str) -> str:
    """The value in YAML 1.1, or only its kind."""
    if kind not in (NUMBER, BOOLEAN) or len(node.value) > MOST_SHOWN:
        return kind
    value = loader.construct_object(node)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _meaning_now(word: str, kind: str) -> str:
    """The value in YAML 1.2, or only its kind."""
    if kind != NUMBER or len(word) > MOST_SHOWN:
        return kind
    if word.startswith(("0o", "0x")):
        return str(int(word, 0))
    return str(int(word)) if re.fullmatch(r"[-+]?[0-9]+", word) else repr(float(word))
